"""What turns hidden states into actions, and numbers into rows of the sequence."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

NO_TOKEN = -1  # what is said where the weights or the input were no numbers
NORM_EPS = 1e-5  # not that of the vision encoders and the language model


class ResidualBlock(nn.Module):
    """x + ReLU(Linear(LayerNorm(x)))."""

    def __init__(self, width: int):
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width, NORM_EPS), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return x + self.ffn(x)


class L1ActionHead(nn.Module):
    """MLP-ResNet that regresses normalised actions; each time step reads its own rows.

    actions: numbers of one action, A, and so rows of a time step.
    """

    def __init__(self, width: int, actions: int):
        super().__init__()
        self.actions = actions
        self.layer_norm1 = nn.LayerNorm(actions * width, NORM_EPS)
        self.fc1 = nn.Linear(actions * width, width)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(2))
        self.layer_norm2 = nn.LayerNorm(width, NORM_EPS)
        self.fc2 = nn.Linear(width, actions)

    def forward(self, states: Tensor) -> Tensor:
        """Hidden states of the action rows [B, A K, width] -> [B, K, A]."""
        batch, rows, width = states.shape
        steps = states.reshape(batch, rows // self.actions, self.actions * width)
        x = functional.relu(self.fc1(self.layer_norm1(steps)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class VocabularyHead(nn.Module):
    """Actions as words: each token names one of the bins of [-1, 1].

    ids_end: action ids count down from here, ids_end - 1 is the lowest bin. actions: numbers of
    one action, A.
    """

    def __init__(self, width: int, vocabulary: int, bins: int, ids_end: int, actions: int):
        super().__init__()
        self.actions = actions
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.bins, self.ids_end = bins, ids_end

    def forward(self, states: Tensor) -> Tensor:
        """Hidden states of the action rows [B, A K, width] -> [B, K, A]."""
        return self.decode(self.token_ids(states))

    def token_ids(self, states: Tensor) -> Tensor:
        """[..., width] -> [...] int64, the likeliest token of each row; NO_TOKEN if none is.

        Of numbers of which one is NaN, argmax chooses that one, and a robot would follow it.
        """
        logits = self.lm_head(states)
        return torch.where(logits.amax(dim=-1).isfinite(), logits.argmax(dim=-1), NO_TOKEN)

    def decode(self, ids: Tensor) -> Tensor:
        """Ids [B, A K] -> centres of their bins [B, K, A] float32, NaN for NO_TOKEN.

        ValueError if most of them are no action tokens: the weights were not made for this head.
        """
        places, none = self.ids_end - ids - 1, ids == NO_TOKEN
        if ((places >= 0) & (places < self.bins) | none).float().mean() < 0.5:
            raise ValueError(
                'The language model answers with words instead of action tokens; the checkpoint '
                'lacks its action_head file, or was not trained to predict action tokens.'
            )
        # bins edges make one interval less.
        places = places.clamp(0, self.bins - 2).double()
        centres = -1 + (2 * places + 1) / (self.bins - 1)
        centres = centres.masked_fill(none, torch.nan)
        return centres.float().unflatten(1, (-1, self.actions))


class NoisyActionProjector(nn.Module):
    """From one noisy action value to one row of the sequence."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(1, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, actions: Tensor) -> Tensor:
        """[B, K, A] -> [B, A K, width]."""
        return self.fc2(functional.gelu(self.fc1(actions.flatten(1)[..., None])))


def time_embedding(step: Tensor, width: int) -> Tensor:
    """Sines and cosines of a diffusion step, [B] -> [B, 1, width] float32."""
    half = width // 2
    rates = torch.arange(half, device=step.device, dtype=torch.float32) / (half - 1)
    angles = step.float()[:, None] * 10000.0**-rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[:, None]


class ProprioProjector(nn.Module):
    """From the normalised proprio vector to one row of the sequence."""

    def __init__(self, proprio: int, width: int):
        super().__init__()
        self.fc1 = nn.Linear(proprio, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, proprio: Tensor) -> Tensor:
        """[B, proprio] -> [B, 1, width]."""
        return self.fc2(functional.gelu(self.fc1(proprio)))[:, None]
