"""What a run has to bear, one file each; `scripts/endurance.py` tries it all."""
