"""Synthetic speech by espeak-ng, through the library that the package espeakng-loader ships.

The engine keeps state between utterances, so a list is spoken in order by a process of its own: the same list gives
the same samples. Nothing here imports torch or isobatch at the top, because the file is also that process.
"""

import ctypes
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1
_RATE, _PITCH = 1, 3
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def speak(phrases: Sequence[tuple[str, str, int, int]]) -> tuple[list[np.ndarray], int]:
    """Speak phrases in a fresh process; the same phrases give the same samples.

    Args:
        phrases: (text, voice such as "en-us+klatt2", words per minute, pitch from 0 to 99), in order.

    Returns:
        int16 waveforms, one a phrase, and their sampling rate in Hz.

    Raises:
        InputError: the extra is not installed, or the engine refuses a voice.
    """
    from isobatch.errors import InputError

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.npz"
        command = [sys.executable, "-P", "-W", "ignore", __file__, str(path)]
        done = subprocess.run(command, input=json.dumps(list(phrases)), capture_output=True, text=True, check=False)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise InputError(
                f'speech could not be synthesised ({why}); install the extra: pip install "isobatch-studies[speech]"'
            )
        with np.load(path) as found:
            return np.split(found["samples"], found["ends"][:-1]), int(found["rate"])


def _main(path: str) -> None:
    engine = _Engine()
    waves = [engine.say(*phrase) for phrase in json.load(sys.stdin)]
    np.savez(path, samples=np.concatenate(waves), ends=np.cumsum([len(w) for w in waves]), rate=engine.rate)


class _Engine:
    def __init__(self) -> None:
        import espeakng_loader

        self.library: Any = ctypes.CDLL(espeakng_loader.get_library_path())
        self.library.espeak_Synth.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint,
            ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip
        self.rate = self.library.espeak_Initialize(
            _SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), _DONT_EXIT
        )
        if self.rate <= 0:
            raise RuntimeError("espeak-ng does not find its data")
        self.parts: list[np.ndarray] = []
        self.callback = _CALLBACK(self._hear)  # kept, or the engine would call freed memory
        self.library.espeak_SetSynthCallback(self.callback)

    def say(self, text: str, voice: str, rate: int, pitch: int) -> np.ndarray:
        self.parts = []
        if self.library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        self.library.espeak_SetParameter(_RATE, rate, 0)
        self.library.espeak_SetParameter(_PITCH, pitch, 0)
        line = text.encode()
        failed = self.library.espeak_Synth(line, len(line) + 1, 0, 1, 0, _UTF8, None, None)
        self.library.espeak_Synchronize()
        if failed or not self.parts:
            raise RuntimeError(f"espeak-ng could not speak {text!r} with {voice!r}")
        return np.concatenate(self.parts)

    def _hear(self, wave: Any, count: int, events: Any) -> int:
        if wave and count > 0:
            self.parts.append(np.ctypeslib.as_array(wave, (count,)).copy())
        return 0


if __name__ == "__main__":
    _main(sys.argv[1])
