"""The speaker encoder of Resemblyzer and its preprocessing.

Reimplemented after version 0.1.4 of the package, which imports a module that scipy no longer has. The steps and
constants are the same: 16 kHz, volume raised to -30 dBFS, pauses removed by webrtcvad, then a mel filter bank of 40
channels over windows of 25 ms every 10 ms, of which the encoder reads 160 at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks.inputs import extra

SAMPLE_RATE, WINDOW, HOP, MELS, FRAMES = 16_000, 400, 160, 40, 160
LEAST_SAMPLES = (FRAMES - 1) * HOP
"""Length of a wave with as many frames as the encoder reads at a time."""
LEAST_RMS = 10 ** (-30 / 20)
VOICE_SAMPLES = SAMPLE_RATE * 30 // 1000
VOICE_AVERAGE, VOICE_WIDENED = 8, 7
"""Number of voice decisions (30 ms each) that are averaged, and to which a voiced one is extended."""
PCM_MAX = 2**15 - 1

Wave = NDArray[np.float32]


class VoiceEncoder(nn.Module):
    """The network of Resemblyzer: three LSTM layers, and a linear layer with ReLU on the last hidden state."""

    def __init__(self) -> None:
        """Create the layers."""
        super().__init__()
        self.lstm = nn.LSTM(MELS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(
        self,
        mels: Tensor,  # shape: (batch, frames, MELS)
    ) -> Tensor:  # shape: (batch, 256), rows of unit norm
        """Embed a batch of segments."""
        _, (hidden, _) = self.lstm(mels)
        return normalize(torch.relu(self.linear(hidden[-1])), dim=1)


def pretrained(folder: Path) -> VoiceEncoder:
    """The encoder with the weights in `pretrained.pt` of the package folder."""
    state = torch.load(folder / "pretrained.pt", map_location="cpu", weights_only=True)["model_state"]
    model = VoiceEncoder().eval()
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    return model


def recording(path: Path) -> Wave:
    """Read a sound file at the sample rate of the encoder; quiet recordings are amplified."""
    wave: Wave = extra("librosa").load(path, sr=SAMPLE_RATE)[0]
    loudness = float(np.sqrt(np.mean(wave**2))) if len(wave) else 0.0
    return wave * np.float32(max(1.0, LEAST_RMS / max(loudness, 1e-9)))


def mel(wave: Wave) -> NDArray[np.float32]:  # shape: (frames, MELS)
    """The input of the encoder: mel powers (not logarithms), one frame every 10 ms."""
    power = extra("librosa").feature.melspectrogram(y=wave, sr=SAMPLE_RATE, n_fft=WINDOW, hop_length=HOP, n_mels=MELS)
    frames: NDArray[np.float32] = power.T.astype(np.float32)
    return frames


def without_pauses(wave: Wave) -> Wave:
    """Remove what webrtcvad in its strictest mode does not classify as voice, except for short pauses."""
    detector: Any = extra("webrtcvad", "webrtcvad-wheels").Vad(3)
    wave = wave[: len(wave) // VOICE_SAMPLES * VOICE_SAMPLES]
    pcm = np.round(np.clip(wave, -1.0, 1.0) * PCM_MAX).astype("<i2").reshape(-1, VOICE_SAMPLES)
    voiced = np.array([detector.is_speech(window.tobytes(), SAMPLE_RATE) for window in pcm], dtype=float)
    before = (VOICE_AVERAGE - 1) // 2
    padded = np.pad(voiced, (before, VOICE_AVERAGE - 1 - before))
    smooth = np.convolve(padded, np.ones(VOICE_AVERAGE), "valid") > VOICE_AVERAGE / 2
    wide = np.convolve(smooth.astype(float), np.ones(VOICE_WIDENED), "same") > 0
    return wave[np.repeat(wide[: len(pcm)], VOICE_SAMPLES)]
