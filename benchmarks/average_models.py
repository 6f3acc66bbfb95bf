"""Module trees with the tensors of well-known models; they hold weights and are never run."""

import torch
from torch import nn


class Bottleneck(nn.Module):
    def __init__(self, given: int, width: int, shortcut: bool):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(given, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU()
        if shortcut:
            conv = nn.Conv2d(given, 4 * width, 1, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(4 * width))


def resnet50(width: int = 64, classes: int = 1000) -> nn.Module:
    """161 parameters and 159 buffers; 25.6 million weights at width 64, a few hundred at width 1."""
    model = nn.Module()
    model.conv1, model.bn1 = nn.Conv2d(3, width, 7, bias=False), nn.BatchNorm2d(width)
    given = width
    for stage, (times, depth) in enumerate(((1, 3), (2, 4), (4, 6), (8, 3)), start=1):
        blocks = []
        for index in range(depth):
            blocks.append(Bottleneck(given, width * times, index == 0))
            given = 4 * width * times
        model.add_module(f"layer{stage}", nn.Sequential(*blocks))
    model.fc = nn.Linear(given, classes)
    return model


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, width // 64)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


def vit_b16() -> nn.Module:
    """152 parameters, 86.6 million weights."""
    model = nn.Module()
    model.token = nn.Parameter(torch.zeros(1, 1, 768))
    model.position = nn.Parameter(torch.zeros(1, 197, 768))
    model.patches = nn.Conv2d(3, 768, 16, 16)
    model.blocks = nn.Sequential(*(Block(768) for _ in range(12)))
    model.ln = nn.LayerNorm(768)
    model.head = nn.Linear(768, 1000)
    return model


def many_small(count: int = 1000, size: int = 1000) -> nn.Module:
    """1000 parameters of 1000 weights, one per module."""
    model = nn.Module()
    for k in range(count):
        part = nn.Module()
        part.weight = nn.Parameter(torch.randn(size))
        model.add_module(f"part{k}", part)
    return model
