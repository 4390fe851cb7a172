#!/usr/bin/env bash
# python-soundfile: a part of an MP3 read from an offset, or in blocks, differs from the same
# samples of the file read whole.
#
# Version:   soundfile 0.14.0 (its wheel brings libsndfile 1.2.2), numpy 2.4.6; Linux, Python 3.11.
#            The same with soundfile 0.12.1 (libsndfile 1.2.0) and 0.13.1.
# Behaviour: soundfile.read(start=...), SoundFile.seek and soundfile.blocks give, without an error,
#            wrong samples for some hundreds of samples after a seek (read() seeks after each call,
#            hence the blocks). A frame of an MP3 may use bytes of the frames before it, which a
#            seek loses: libsndfile's decoder says "part2_3_length too large" on stderr. WAV, FLAC
#            and OGG are not affected. librosa.load(offset=...) does the same. Reading the file
#            whole and slicing is right.
# Output seen (largest differences; the signal is within 0.8):
#   soundfile 0.14.0, libsndfile 1.2.2
#   mp3:  offset 0.197, blocks 0.327
#   wav:  offset 0.000, blocks 0.000
#   flac: offset 0.000, blocks 0.000
#   ogg:  offset 0.000, blocks 0.000
#   unchanged
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check soundfile==0.14.0 numpy==2.4.6

venv/bin/python - 2>/dev/null <<'EOF'
import sys

import numpy as np
import soundfile as sf

rate = 16_000
t = np.arange(5 * rate) / rate
noise = np.random.default_rng(0).normal(size=t.size)
sound = 0.3 * np.sin(2 * np.pi * 440 * t * (1 + 0.1 * t)) + 0.1 * noise
sound *= np.where(np.sin(2 * np.pi * 1.3 * t) > 0, 1, 0.1)

print(f"soundfile {sf.__version__}, libsndfile {sf.__libsndfile_version__}")
worst = {}
for kind in ("mp3", "wav", "flac", "ogg"):
    name = f"sound.{kind}"
    sf.write(name, sound, rate)
    whole, _ = sf.read(name)
    parts = [(s, sf.read(name, start=s, frames=rate)[0]) for s in range(0, 4 * rate, 1000)]
    offset = max(np.abs(part - whole[s : s + rate]).max() for s, part in parts)
    blocks = 0.0
    for size in (512, 1000, 1152):
        pieces = np.concatenate(list(sf.blocks(name, blocksize=size)))[: len(whole)]
        blocks = max(blocks, np.abs(pieces - whole[: len(pieces)]).max())
    worst[kind] = offset, blocks
    print(f"{kind + ':':5} offset {offset:.3f}, blocks {blocks:.3f}")

same = min(worst.pop("mp3")) > 0.01 and max(map(max, worst.values())) < 1e-6
print("unchanged" if same else "CHANGED")
sys.exit(not same)
EOF
