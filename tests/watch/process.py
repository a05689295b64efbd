"""Programs for tests that need real processes: `process.py worker JSON` and `process.py watch RUN
[OPTION=JSON ...]`."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))


def main():
    kind, *rest = sys.argv[1:]
    if kind == "worker":
        from watch_fakes import FakeFactory

        from dse_monitor.watch.workers import worker

        sys.argv = ["worker", *rest]
        return worker.main(FakeFactory())
    from dse_monitor.evaluation.config import EvaluationConfig
    from dse_monitor.watch.console import Console
    from dse_monitor.watch.monitor import Monitor, _signals
    from dse_monitor.watch.options import WatchOptions
    from dse_monitor.watch.workers.child import WorkerProcess

    options = {
        "config": EvaluationConfig(images="i"),
        "maps": False,
        "settle_seconds": 0.05,
        "poll_seconds": 0.1,
    }
    options |= {name: json.loads(value) for name, _, value in (text.partition("=") for text in rest[1:])}
    monitor = Monitor(
        WatchOptions(runs=(Path(rest[0]),), **options),
        Console(form="plain"),
        make_worker=lambda: WorkerProcess([sys.executable, __file__, "worker"]),
    )
    with _signals(monitor):
        code = monitor.run()
    assert "torch" not in sys.modules
    return code


if __name__ == "__main__":
    sys.exit(main())
