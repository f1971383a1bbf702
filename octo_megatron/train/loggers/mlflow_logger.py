"""MLflow: to MLFLOW_TRACKING_URI where that is set, else into RUN/mlflow.db beside the nodes."""

from __future__ import annotations

import os

import mlflow

from octo_megatron.config.run_folder import NodeContext, read_json, write_json


class MLflow:
    """One run a node; its id is kept in the node's folder, so that a resumed node goes on in it."""

    def __init__(self, ctx: NodeContext):
        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri(f"sqlite:///{(ctx.run.root / 'mlflow.db').resolve()}")
        mlflow.set_experiment(ctx.lineage.name)
        kept = ctx.folder.root / "mlflow.json"
        if kept.is_file():
            self._run = mlflow.start_run(run_id=read_json(kept)["run_id"])
        else:
            self._run = mlflow.start_run(run_name=ctx.name)
            write_json(kept, {"run_id": self._run.info.run_id})

    def log(self, step: int, numbers: dict[str, float]) -> None:
        mlflow.log_metrics(numbers, step=step)

    def close(self) -> None:
        mlflow.end_run()


def open_logger(ctx: NodeContext, name: str, resume_step: int) -> MLflow:
    return MLflow(ctx)
