"""Sound: the notes that are written are the notes of the roll."""

import io
import wave

import numpy as np

from lab_cases import rolls
from noisin.lab import sound


def test_notes_are_the_runs_of_a_key():
    roll = np.zeros((6, 88), np.uint8)
    roll[[0, 1, 3], 10] = 1
    roll[2:, 87] = 1
    assert sound.notes_of(roll) == [(10, 0, 2), (10, 3, 4), (87, 2, 6)]


def test_notes_give_the_roll_back():
    (roll,) = rolls([40])
    back = np.zeros_like(roll)
    for key, start, end in sound.notes_of(roll):
        assert not back[start:end, key].any()
        back[start:end, key] = 1
    np.testing.assert_array_equal(back, roll)


def test_wav_has_the_pitch_and_the_length():
    roll = np.zeros((8, 88), np.uint8)
    roll[:, 69 - 21] = 1  # A4, 440 Hz
    with wave.open(io.BytesIO(sound.wav(roll, tempo=120))) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        rate, frames = file.getframerate(), file.getnframes()
        samples = np.frombuffer(file.readframes(frames), "<i2").astype(float)
    assert frames == 8 * rate // 2 + rate // 4
    spectrum = np.abs(np.fft.rfft(samples))
    resolution = rate / frames
    assert abs(spectrum.argmax() * resolution - 440) <= resolution
    assert 29_000 < np.abs(samples).max() < 29_500  # 0.9 of full scale, nothing clipped


def test_silence_is_silent():
    assert not sound.render(np.zeros((3, 88), np.uint8)).any()


def test_highest_keys_do_not_fold_back():
    """Partials above half the rate are left out, else they would sound as low tones."""
    roll = np.zeros((4, 88), np.uint8)
    roll[:, 87] = 1  # 4186 Hz: the second partial is above 8000
    spectrum = np.abs(np.fft.rfft(sound.render(roll)))
    below = spectrum[: int(3000 / (sound.RATE / 2) * len(spectrum))]
    assert below.max() < spectrum.max() / 100
