"""The image encoder of Mirai: a ResNet-18 without pooling and classifier, with the keys of its checkpoints."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

OUT_CHANNELS = 512
STRIDE = 32


def mirai_backbone() -> nn.Sequential:
    """A freshly initialised backbone: images (B, 3, H, W) float -> features (B, 512, H/32, W/32), not
    negative.

    Nine children: 0 is the stem (`conv1`, `bn1`, `relu`, `maxpool`), 1 to 8 are the basic blocks layer1_0 to
    layer4_1, so that trained checkpoints have keys such as `3.downsample.0.weight` after the model's own
    prefix. 11,176,512 parameters, 120 state-dict entries; convolutions start from He's normal initialisation
    (fan out).

    Source: "Deep residual learning for image recognition", 2016, as trained for Mirai ("Toward robust
    mammography-based models for breast cancer risk", 2021).
    """
    from torchvision.models.resnet import BasicBlock

    stem = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False),
            bn1=nn.BatchNorm2d(64),
            relu=nn.ReLU(inplace=True),
            maxpool=nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
    )
    blocks: list[nn.Module] = []
    inplanes = 64
    for planes, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        shortcut = None
        if stride != 1:
            convolution = nn.Conv2d(inplanes, planes, kernel_size=1, stride=stride, bias=False)
            shortcut = nn.Sequential(convolution, nn.BatchNorm2d(planes))
        blocks += [BasicBlock(inplanes, planes, stride, shortcut), BasicBlock(planes, planes)]
        inplanes = planes
    backbone = nn.Sequential(stem, *blocks)
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return backbone
