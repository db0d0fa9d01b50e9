"""The action head and the proprio projector."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from vla_policy_node.models.config import ACTION_DIMENSION


class ResidualBlock(nn.Module):
    """x + ReLU(Linear(LayerNorm(x)))."""

    def __init__(self, width: int):
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return x + self.ffn(x)


class L1ActionHead(nn.Module):
    """MLP-ResNet that regresses normalised actions; each time step reads its own seven rows."""

    def __init__(self, width: int):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(ACTION_DIMENSION * width)
        self.fc1 = nn.Linear(ACTION_DIMENSION * width, width)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(2))
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, ACTION_DIMENSION)

    def forward(self, states: Tensor) -> Tensor:
        """Hidden states of the action rows [B, 7 K, width] -> [B, K, 7]."""
        batch, rows, width = states.shape
        steps = states.reshape(batch, rows // ACTION_DIMENSION, ACTION_DIMENSION * width)
        x = functional.relu(self.fc1(self.layer_norm1(steps)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class ProprioProjector(nn.Module):
    """From the normalised proprio vector to one row of the sequence."""

    def __init__(self, proprio: int, width: int):
        super().__init__()
        self.fc1 = nn.Linear(proprio, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, proprio: Tensor) -> Tensor:
        """[B, proprio] -> [B, 1, width]."""
        return self.fc2(functional.gelu(self.fc1(proprio)))[:, None]
