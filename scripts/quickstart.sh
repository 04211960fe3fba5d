#!/usr/bin/env bash
# From a fresh machine to a trained adapter: set up .venv, then fine-tune the small
# model that ships with the package. Overrides are passed on, as in
#
#   bash scripts/quickstart.sh output_dir=runs/second training.max_steps=50
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup_venv.sh
echo "Training: python -m jaxpeft.train --config configs/quickstart.yaml $*"
exec .venv/bin/python -m jaxpeft.train --config configs/quickstart.yaml "$@"
