"""score: a file of predictions against a file of gold answers."""

import argparse
import json
from typing import Any

from road_ds.commands.arguments import command


def add(commands: Any) -> None:
    """Adds the command line."""
    scores = commands.add_parser("score", help="Scores a file of predictions", allow_abbrev=False)
    kinds = scores.add_subparsers(required=True, metavar="KIND")
    added = command(kinds, "squad2", run)
    added.add_argument("gold", metavar="GOLD.json", help="SQuAD 1.1 or 2.0 file")
    added.add_argument("predictions", metavar="PREDICTIONS.json", help='{"question id": "answer"}')
    added.add_argument(
        "--na-prob", metavar="FILE", help='{"question id": score of "no answer"}: adds best_* at the tuned threshold'
    )
    added.add_argument(
        "--na-prob-thresh", type=float, default=1.0, metavar="X", help="answers above it count as empty (default 1)"
    )


def run(options: argparse.Namespace) -> None:
    """Prints SQuAD 2.0 scores as JSON with the official evaluator's keys."""
    from road_ds.tasks import metrics

    golds = metrics.load_squad_golds(options.gold)
    predictions = metrics.load_predictions(options.predictions)
    chances = metrics.load_probabilities(options.na_prob) if options.na_prob else None
    print(json.dumps(metrics.squad_scores(golds, predictions, chances, options.na_prob_thresh), indent=2))
