from setuptools import setup

setup(
    name="road_ds",
    version="0.1.0",
    description="Multi-task pretraining and distillation of NLU encoders under DeepSpeed (ROaD)",
    python_requires=">=3.11",
    packages=[
        "road_ds",
        *("road_ds." + room for room in ("common", "config", "data", "tasks", "models", "distillation", "engine")),
        *("road_ds." + room for room in ("recipes", "commands")),
        "road_kernels",
    ],
    package_dir={"road_kernels": "kernels/road_kernels"},
    package_data={
        "road_ds": ["config/catalog.json", "data/sample_data/*", "data/sample_data/*/*"],
        "road_kernels": ["tiles.json"],
    },
    install_requires=[
        "torch>=2.8",  # each torch pins its Triton: 2.8 has 3.4
        "deepspeed>=0.19.8",  # 0.19.0 takes keys out of the settings it is given
        "transformers>=5.16",
        "datasets>=5.0",
        "triton>=3.4; platform_system == 'Linux'",
        "numpy",
        "pydantic>=2.10",
        "safetensors",
        "scikit-learn",
        "scipy",
        "matplotlib",
        "tqdm",
    ],
    extras_require={
        "test": ["pytest", "pytest-xdist", "hypothesis", "seqeval"],
        "dev": ["ruff", "mypy"],
        "bench": ["accelerate"],
        "sweep": ["optuna>=5.0"],
        "onnx": ["onnx", "onnxscript", "onnxruntime"],
    },
    entry_points={"console_scripts": ["road-ds = road_ds.__main__:main"]},
)
