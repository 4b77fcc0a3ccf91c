"""What stands in the tables of README.zh-CN.md instead of the English words."""

import re

WORDS = {
    # heads
    "run": "训练方案",
    "test accuracy": "测试准确率",
    "negative log likelihood": "负对数似然",
    "calibration error": "校准误差",
    "training, s": "训练秒数",
    "seeds": "种子数",
    "family": "类别",
    "our row": "我们的行",
    "recipes": "配方",
    "beside": "对照的行",
    "recorded": "书中记录",
    "its set-up, measured": "按书中设置实测",
    "ours": "我们的",
    "gain, 95 % interval": "提升，95% 区间",
    "row": "行",
    "set-up": "设置",
    "images": "图像",
    "accuracy, recorded": "准确率，记录值",
    "loss, recorded": "loss，记录值",
    "measured": "实测",
    "in the interval": "在区间内",
    "process": "进程",
    "network": "网络",
    "way": "方式",
    "seconds an epoch": "每个 epoch 秒数",
    "times as fast as plain `fit` on TensorFlow (95 % interval)": (
        "速度，TensorFlow 上普通 `fit` 的倍数（95% 区间）"
    ),
    "validation accuracy": "验证准确率",
    "less that of the first": "与第一行之差",
    "seconds of `fit`": "`fit` 的秒数",
    "times as fast, median": "速度倍数，中位数",
    # cells
    "the same": "同上",
    "validation": "验证集",
    "test": "测试集",
    "test, MC Dropout": "测试集，MC Dropout",
    "yes": "是",
    "**no**": "**否**",
    "initialization, depth": "初始化、深度",
    "activations": "激活函数",
    "batch normalization": "批归一化",
    "transfer": "迁移学习",
    "optimizers": "优化器",
    "schedules": "学习率调度",
    "regularization": "正则化",
    "TensorFlow, one thread": "TensorFlow，单线程",
    "PyTorch, one thread": "PyTorch，单线程",
    "no dropout": "无 dropout",
    "plain fit": "普通 `fit`",
    "as train.py": "与 train.py 相同",
    "Python": "Python",
    "backend": "后端",
    "versions": "版本",
    "passed": "通过",
    "failed": "失败",
    "known to fail": "已知失败",
}


def translated(table):
    """A Markdown table with Chinese cells, or what stands in them before a colon."""
    words = r"(?<=\| )[^|]+?(?= \||: )"
    return re.sub(words, lambda match: WORDS.get(match[0], match[0]), table)
