"""A worker's imports leave PyTorch's compiler out, and leave nothing in its place."""

import subprocess
import sys
import textwrap


def _run(code):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_worker_starts_without_the_compiler_which_works_when_asked_for():
    said = _run("""
        import sys
        from dse_monitor.watch.workers import imports
        imports.load()
        print("torch._dynamo" in sys.modules, "sympy" in sys.modules, "timm" in sys.modules)
        import timm, torch
        network = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1).eval()
        images = torch.rand(2, 3, 224, 224)
        with torch.inference_mode():
            print(torch.equal(torch.compile(network, backend="eager")(images), network(images)))
        print(bool(torch._dynamo.disable), hasattr(sys.modules["torch._dynamo.utils"], "counters"))
    """)
    assert said == ["False", "False", "True", "True", "True", "True"]


def test_where_more_is_asked_of_the_compiler_it_is_loaded_after_all():
    said = _run("""
        import sys
        from dse_monitor.watch.workers import imports
        imports._as_it_is = None  # as if timm asked for what the stand-in has not
        imports.load()
        print("torch._dynamo" in sys.modules, "timm" in sys.modules)
        import timm
        print(timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1).num_features)
    """)
    assert said == ["True", "True", "192"]


def test_a_compiler_that_is_loaded_already_stays():
    said = _run("""
        import sys, torch._dynamo
        from dse_monitor.watch.workers import imports
        before = sys.modules["torch._dynamo"]
        imports.load()
        print(sys.modules["torch._dynamo"] is before)
    """)
    assert said == ["True"]
