.PHONY: demo test check

demo:  ## train the embedded sample
	pip install -c constraints.txt -e . && deepspeed road_ds/train.py --deepspeed_config ds_configs/mtl.json

test:  ## pass the tests
	pip install -c constraints.txt -e '.[test]' && pytest

check:  ## style, format and types
	pip install -q -c constraints.txt -e '.[dev]' && ruff check . && ruff format --check . && mypy
