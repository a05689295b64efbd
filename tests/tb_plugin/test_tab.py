"""The page itself, in a real browser, with both of TensorBoard's data loaders.

Every test fails if the page throws, logs an error or breaks its content security policy (see `open_tab`).
"""

import csv
import dataclasses
import io
import json
import math
import re
import shutil
import urllib.parse

import numpy as np
import pytest

from dse_monitor.metric.components import Components
from dse_monitor.publish.encoding import point
from dse_monitor.publish.events import EventWriter
from dse_monitor.publish.state import run_state
from dse_monitor.runs.record import POINT_COLUMNS, Alert, Evaluation, Settings, Source
from dse_monitor.runs.series import Series
from dse_monitor.tb_plugin.line import COLUMNS, line_of
from dse_monitor.tb_plugin.points import Points

HOSTILE = (
    '<img src=x onerror="window.broken=1">\'${1}{{2}}\u202e%00&lt;</script><script>window.broken=2</script>'
)


def showing(*runs, **more):
    """The part of an address that selects runs and other choices."""
    chosen = {"runs": ",".join(urllib.parse.quote(run, safe="") for run in runs), **more}
    return "".join(
        f"&p.dse.{name}={urllib.parse.quote(str(value), safe='')}" for name, value in chosen.items()
    )


def wait(tab, condition):
    tab.frame.wait_for_function(f"() => {{ const app = window.__dse.app; return {condition}; }}")


def _ready(server):
    server.wait_for_rows("falling/dse", 40)
    server.wait_for_rows("healthy/dse", 40)
    server.wait_for(lambda: server.get("scalars", run="falling/dse").json())
    return server


@pytest.fixture
def ready(servers):
    """A server that has read the small runs; for what does not depend on the loader."""
    return _ready(servers["fast"])


@pytest.fixture
def each_ready(server):
    """Each loader's server in turn."""
    return _ready(server)


def test_the_answer_comes_first_inside_tensorboard(each_ready, open_tab):
    """Is it degrading, since when, why, which checkpoint; then the charts that show it."""
    tab = open_tab(each_ready, host=True, fragment=showing("falling/dse", "healthy/dse"))
    answer = tab.text(".answer")
    assert "falling is degrading since epoch" in answer
    assert "Cause: separability (78 % of the drop)" in answer
    best = Series.from_evaluations(_falling(each_ready)).best
    assert f"Take epoch {5 * (best + 1)}" in answer
    summary = tab.summary()
    assert [panel["key"] for panel in summary["panels"]] == ["dse", "separability", "m_dim", "loss"]
    assert summary["marks"]["best"] == 2
    assert (summary["marks"]["alerts"], summary["marks"]["spans"], summary["marks"]["failed"]) == (1, 1, 2)
    assert tab.run("falling/dse")["lossRows"] == 400
    assert tab.frame.evaluate(INKED) == [True] * 4
    # The address says what is shown, so that a link shows the same.
    assert "p.dse.focus=falling%2Fdse" in tab.page.url


INKED = """() => window.__dse.app.charts.plots.map(({u}) => {
  const {data} = u.ctx.getImageData(0, 0, u.ctx.canvas.width, u.ctx.canvas.height);
  let opaque = 0;
  for (let i = 3; i < data.length; i += 4) opaque += data[i] > 100;
  return opaque > 500;
})"""


def _falling(server):
    """The evaluations of the run, back from what the server sends."""
    _, columns = server.points("falling/dse")
    return [
        evaluation_of(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)
    ]


def evaluation_of(row):
    parts = {name: float(row[name]) for name in POINT_COLUMNS[7:17]}
    scored = row["status"] == 0
    return Evaluation(
        status="scored" if scored else "failed",
        source=Source(path=str(row["file"]), epoch=float(row["epoch"]), step=int(row["step"])),
        settings=Settings(images="x", num_images=1) if scored else None,
        components=Components(**parts) if scored else None,
        seq=int(row["seq"]),
    )


def test_ten_thousand_checkpoints_reach_the_page(server, open_tab):
    server.wait_for_rows("big/dse", 10_000)
    tab = open_tab(server, fragment=showing("big/dse"))
    wait(tab, "app.runs.get('big/dse').points?.rows === 10000")
    run = tab.run("big/dse")
    assert (run["rows"], run["line"]["length"]) == (10_000, 10_000)
    assert tab.summary()["panels"][0]["rows"] == 10_000
    assert tab.frame.locator(".banner").count() == 0


def test_page_and_python_agree_on_lambda_candidates_best_and_errors(ready, open_tab):
    """The browser derives the line by itself: runs with repeats, gaps, failures and several settings."""
    tab = open_tab(ready, fragment=showing("healthy/dse"))
    rng = np.random.default_rng(7)
    for case in range(60):
        evaluations = random_run(rng, case)
        rows = np.array([point(e) for e in sorted(evaluations, key=lambda e: e.seq)]).reshape(
            -1, len(POINT_COLUMNS)
        )
        columns = {
            name: [None if math.isnan(value) else value for value in column]
            for name, column in zip(POINT_COLUMNS, rows.T, strict=True)
        }
        lam = None if case % 3 else float(rng.uniform(0, 3))
        told = line_of(Points(rows, ("0",) * len(rows), 0), lambda seqs: [])
        reply = {"header": told.header(), "rows": len(told.table)}
        order = {
            name: [None if math.isnan(value) else value for value in column]
            for name, column in zip(COLUMNS, told.table.T, strict=True)
        }
        found = tab.frame.evaluate(
            """([columns, rows, reply, order, lam]) => {
              const number = (values) => Float64Array.from(values, (value) => value ?? NaN);
              const all = (columns) => Object.fromEntries(
                Object.entries(columns).map(([k, v]) => [k, number(v)]));
              const [typed, ordered] = [all(columns), all(order)];
              const points = {rows, columns: typed};
              const {lineOf, orderOf} = window.__dse.series;
              const line = lineOf(points, orderOf(points, {...reply, columns: ordered}), lam);
              return {...line, dse: [...line.dse], se: [...line.se], x: [...line.x], separability: null,
                      mDim: null, index: null, aside: null, epochs: null, untrained: [...line.untrained],
                      seqs: line.rows.map((row) => typed.seq[row])};
            }""",
            [columns, len(rows), reply, order, lam],
        )
        expected = Series.from_evaluations(evaluations, lam)
        assert found["seqs"] == [e.seq for e in expected.evaluations], case
        assert found["candidates"] == list(expected.candidates), case
        assert found["best"] == (-1 if expected.best is None else expected.best), case
        assert (found["axis"], found["x"]) == (expected.axis, expected.x.tolist()), case
        assert found["untrained"] == expected.untrained.astype(float).tolist(), case
        assert found["lambda"] == pytest.approx(expected.lam, rel=1e-12)
        np.testing.assert_allclose(found["dse"], expected.dse, rtol=1e-12)
        np.testing.assert_allclose(np.array(found["se"], float), expected.dse_se, rtol=1e-9, atol=1e-12)


def random_run(rng, case):
    count = int(rng.integers(0, 25))
    constant = case % 7 == 0  # M_dim that does not vary: lambda is 1
    found = []
    for seq in rng.permutation(np.arange(1, count + 1)):
        broken = rng.random() < 0.1
        parts = Components(
            m_inter=math.nan if broken and rng.random() < 0.5 else round(float(rng.normal()), 1),
            m_intra_image=1.0,
            m_intra_batch=1.5,
            m_dim=0.1 if constant else round(float(rng.uniform()), 1),
            m_dim_se=float(rng.uniform()),
            separability_se=float(rng.uniform()),
            separability_dim_cov=float(rng.normal()) * 0.1,
        )
        status = "failed" if rng.random() < 0.1 else "scored"
        epoch = None if case % 5 == 1 and rng.random() < 0.5 else float(rng.integers(case % 2, 20))
        step = None if case % 4 == 1 and rng.random() < 0.4 else int(rng.integers(0, 30))
        settings = Settings(images="ab"[int(rng.random() < 0.2)], num_images=8)
        source = Source(
            path=f"{seq if case % 3 else seq % 5}.pth",
            content=f"{seq if case % 6 else seq % 4}",
            epoch=epoch,
            step=step,
            mtime=1e9 + float(rng.integers(0, 10)),
        )
        scored = status == "scored"
        found.append(
            Evaluation(
                status=status,
                source=source,
                settings=settings if scored else None,
                components=parts if scored else None,
                seq=int(seq),
            )
        )
    return found


def test_lambda_moves_everything_and_adaptive_brings_it_back(ready, open_tab):
    tab = open_tab(ready, fragment=showing("falling/dse"))
    adaptive = tab.run("falling/dse")["line"]["lambda"]
    field = tab.frame.locator(".lambda-field")
    field.fill("0.25")
    field.press("Enter")
    evaluations = _falling(ready)
    expected = Series.from_evaluations(evaluations, 0.25)
    line = tab.run("falling/dse")["line"]
    assert line["lambda"] == 0.25
    assert (line["best"], line["candidates"]) == (expected.best, list(expected.candidates))
    assert f"Take epoch {expected.x[expected.best]:g}" in tab.text(".answer")
    assert "λ 0.25" in tab.text('.panel[data-panel="dse"] .note')
    tab.frame.locator("button.toggle").click()
    assert tab.run("falling/dse")["line"]["lambda"] == adaptive


def test_dragging_zooms_all_panels_and_escape_brings_all_back(ready, open_tab):
    tab = open_tab(ready, fragment=showing("falling/dse"))
    full = tab.summary()["panels"][0]["x"]
    box = tab.frame.locator('.panel[data-panel="m_dim"] .u-over').bounding_box()
    mouse = tab.page.mouse
    mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 20)
    mouse.down()
    mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 30, steps=4)
    mouse.up()
    zoomed = [panel["x"] for panel in tab.summary()["panels"]]
    assert all(x == zoomed[0] for x in zoomed)
    assert zoomed[0][0] == pytest.approx(full[0] + 0.25 * (full[1] - full[0]), rel=0.02)
    assert zoomed[0][1] == pytest.approx(full[0] + 0.75 * (full[1] - full[0]), rel=0.02)
    tab.page.keyboard.press("Escape")
    assert [panel["x"] for panel in tab.summary()["panels"]] == [full] * 4


def test_a_click_on_a_point_opens_its_card(ready, open_tab):
    tab = open_tab(ready, fragment=showing("falling/dse"))
    seq, left, top = tab.do(
        """const run = app.runs.get('falling/dse'); const {u} = app.charts.plots[0];
          const box = u.over.getBoundingClientRect();
           const row = run.line.rows[30];
           return [run.points.columns.seq[row], box.left + u.valToPos(run.x[30], 'x'),
             box.top + u.valToPos(run.line.dse[30], 'y')];"""
    )
    tab.page.mouse.click(left, top)
    assert tab.summary()["view"]["chosen"] == seq
    wait(tab, "app.runs.get('falling/dse').details.has(app.view.chosen)")
    card = tab.frame.locator(".card")
    card.locator("code").wait_for()
    text = card.inner_text()
    epoch = tab.do(
        "const run = app.runs.get('falling/dse'); return run.points.columns.epoch[run.line.rows[30]];"
    )
    assert f"epoch {epoch:g}" in text
    assert f"checkpoint{int(epoch):04d}.pth" in text
    card.locator("summary").click()
    text = card.inner_text()
    for words in (
        "teacher, vit 384x12",
        "2,048 images",
        "forward 4.1",
        "RankMe",
        "key 'global_step' of the file",
        "1.1 GB",
        "heads 6",
        "interpolation bicubic",
    ):
        assert words in text, words
    assumed = card.locator("dt", has_text="Assumed").locator("xpath=following-sibling::dd[1]")
    assert assumed.get_attribute("title") == "interpolation: as in most recipes"


def test_a_failed_checkpoint_says_why(ready, open_tab):
    tab = open_tab(ready, fragment=showing("falling/dse"))
    seq, left, top = tab.do(
        """const {u} = app.charts.plots[0]; const box = u.over.getBoundingClientRect();
          const mark = app.charts.scene.marks.failed[0];
           return [mark.seq, box.left + u.valToPos(mark.x, 'x'), box.bottom - 9];"""
    )
    wait(tab, f"app.runs.get('falling/dse').details.has({seq})")
    tab.page.mouse.move(left, top)
    assert "ends after 412 MB" in tab.text(".tooltip")
    tab.page.mouse.click(left, top)
    tab.frame.locator(".card .reason").wait_for()
    assert "✕ failed" in tab.text(".card")


def test_arrow_keys_step_through_checkpoints_and_maps(ready, open_tab):
    tab = open_tab(ready, fragment=showing("falling/dse"))
    shown = "document.querySelectorAll('.tile')[2].style.backgroundImage.includes(String(app.view.chosen))"
    tab.frame.locator(".charts").focus()
    tab.page.keyboard.press("End")
    last = tab.summary()["view"]["chosen"]
    wait(tab, shown)
    tab.page.keyboard.press("ArrowLeft")
    before = tab.summary()["view"]["chosen"]
    assert before < last
    wait(tab, shown)
    assert tab.text(".maps > span:nth-child(3)") == "epoch 195"
    tab.frame.locator(".maps-body").focus()
    tab.page.keyboard.press("ArrowRight")
    wait(tab, f"app.view.chosen === {int(last)}")
    tab.page.keyboard.press("b")
    assert tab.summary()["view"]["chosen"] is None


def test_maps_show_original_best_and_chosen_and_play(each_ready, open_tab):
    tab = open_tab(each_ready, fragment=showing("falling/dse"))
    tab.frame.locator(".tile").first.wait_for()
    assert tab.frame.locator(".tile").count() == 18  # six images, three columns
    assert tab.text(".maps > span:nth-child(2)").startswith("★ epoch")
    sources = tab.frame.evaluate(
        "[...document.querySelectorAll('.tile')].slice(0, 3).map(t => t.style.backgroundImage)"
    )
    assert len(set(sources)) == 3
    assert all("media?" in source for source in sources)
    tab.do("app.maps.go(35)")
    tab.frame.get_by_role("button", name="Play").click()
    wait(tab, "app.maps.index === 37 && !app.maps.playing")


def test_clusters_are_shown_on_request_and_a_link_keeps_them(each_ready, open_tab):
    """The rows of a map: features, clusters within an image, clusters shared by images."""
    tab = open_tab(each_ready, fragment=showing("falling/dse"))
    tab.frame.locator(".tile").first.wait_for()
    tiles = "[...document.querySelectorAll('.tile')].slice(0, 3)"
    position = f"{tiles}.map(t => t.style.backgroundPosition.split(' ')[1])"
    assert tab.frame.evaluate(position) == ["0%", "0%", "0%"]
    for name, place in (("Clusters in image", "50%"), ("Shared clusters", "100%")):
        tab.frame.get_by_role("button", name=name).click()
        wait(tab, f"app.view.maps !== 'features' && {position}[2] === '{place}'")
        assert tab.frame.evaluate(position)[0] == "0%"  # the original stays
    again = open_tab(each_ready, fragment=tab.page.url.split("#dse", 1)[1])
    wait(again, f"{position}[1] === '100%'")
    assert tab.frame.evaluate(f"{tiles}.map(t => t.style.backgroundSize)") == [
        "600% 100%",
        "600% 300%",
        "600% 300%",
    ]


@pytest.mark.parametrize("fast", ["true", "false"])
def test_maps_are_seen_where_only_the_event_files_were_copied(serve, synthetic, tmp_path, open_tab, fast):
    run = synthetic.write_run(tmp_path / "made" / "exp", checkpoints=136, maps=True, loss=False)
    shutil.rmtree(run.folder / "dse" / "media")
    server = serve(tmp_path / "made", "--load_fast", fast)
    server.wait_until_up()
    server.wait_for_rows("exp/dse", 136)
    tab = open_tab(server, fragment=showing("exp/dse"))
    tab.frame.locator(".tile").first.wait_for()
    sources = tab.frame.evaluate(
        "[...document.querySelectorAll('.tile')].slice(0, 3).map(t => t.style.backgroundImage)"
    )
    assert len(set(sources)) == 3
    assert all("media?" in source for source in sources)
    tab.do("app.maps.go(133)")  # a long run keeps only some of its later maps: the caption says which
    wait(tab, "document.querySelector('.maps > span:nth-child(3)').textContent.startsWith('≈ epoch 665')")


def test_runs_of_other_settings_are_not_drawn_together(ready, open_tab):
    ready.wait_for_rows("settings/dse", 12)
    tab = open_tab(ready, fragment=showing("healthy/dse", "settings/dse", focus="healthy/dse"))
    assert tab.summary()["drawn"] == ["healthy/dse"]
    banner = tab.text('[data-banner="apart"]')
    assert "settings" in banner
    assert "images, num images" in banner
    tab.frame.locator("tr", has_text="settings").locator("button.name").click()
    wait(tab, "app.view.focus === 'settings/dse'")
    assert tab.summary()["drawn"] == ["settings/dse"]


def test_panels_tag_and_logarithm_are_chosen_and_kept(ready, open_tab):
    tab = open_tab(ready, fragment=showing("falling/dse"))
    wait(tab, "app.view.companionNames.includes('RankMe')")
    tab.frame.locator("summary", has_text="Panels").click()
    tab.frame.get_by_label("RankMe").check()
    tab.frame.get_by_role("checkbox", name="Separability", exact=True).uncheck()
    wait(tab, "app.charts.plots.length === 4 && app.charts.plots[3].panel.lines.length === 1")
    assert [panel["key"] for panel in tab.summary()["panels"]] == ["dse", "m_dim", "loss", "companion:RankMe"]
    assert tab.run("falling/dse")["lossTag"] == "train/loss"  # the likeliest, until somebody chooses
    tab.frame.get_by_label("Scalar", exact=True).select_option("lr")
    wait(tab, "app.runs.get('falling/dse').lossTag === 'lr'")
    tab.frame.get_by_label("log", exact=True).check()
    loss = "app.charts.plots.find(({panel}) => panel.key === 'loss')"
    assert tab.do(f"return {loss}.u.scales.y.distr") == 3
    assert tab.frame.evaluate(INKED) == [True] * 4
    again = open_tab(ready, fragment=tab.page.url.split("#dse", 1)[1])
    assert again.run("falling/dse")["lossTag"] == "lr"
    assert again.summary()["panels"][3]["key"] == "companion:RankMe"


def test_a_trainer_that_went_back_is_marked_and_what_it_replaced_is_kept(
    serve, synthetic, tmp_path, open_tab
):
    """Epochs 5 to 50, then again from 35 on: the new ones make the line, the old ones are hollow."""
    run = synthetic.write_run(tmp_path / "exp", checkpoints=10, degraded=False, loss=False)
    later = [
        dataclasses.replace(
            record,
            seq=record.seq + 100,
            source=dataclasses.replace(record.source, mtime=record.source.mtime + 1e5),
        )
        for record in run.evaluations[6:]
    ]
    with EventWriter(run.folder / "dse") as writer:
        for record in later:
            writer.add_evaluation(record)
        writer.set_state(run_state([*run.evaluations, *later], [], run="exp"))
    server = serve(tmp_path)
    server.wait_until_up()
    server.wait_for_rows("exp/dse", 14)
    tab = open_tab(server)
    wait(tab, "app.runs.get('exp/dse')?.points?.rows === 14")
    marks = tab.summary()["marks"]
    assert (marks["resumed"], marks["superseded"]) == (1, 4)
    assert tab.do("return app.charts.scene.marks.resumed") == [35]
    assert tab.run("exp/dse")["line"]["length"] == 10


def test_several_alerts_of_one_kind_are_all_listed(serve, synthetic, tmp_path, open_tab):
    """Two troubles of the watcher at once: neither hides the other, and what was confirmed is said once."""
    run = synthetic.write_run(tmp_path / "exp", checkpoints=6, degraded=False, loss=False)
    seq = run.evaluations[-1].seq
    changes = [
        ("disk/1/firing", "firing", "the disk is full"),
        ("failures/1/pending", "pending", "two checkpoints failed"),
        ("memory/1/pending", "pending", "the device is nearly full"),
        ("failures/1/firing", "firing", "three checkpoints failed"),
        ("disk/1/firing-reminder-1", "firing", "the disk is still full"),
    ]
    alerts = [
        Alert(kind="health", status=status, message=message, key=f"exp/{key}", seq=seq + 1 + k, wall_time=1.0)
        for k, (key, status, message) in enumerate(changes)
    ]
    with EventWriter(run.folder / "dse") as writer:
        for alert in alerts:
            writer.add_alert(alert)
        writer.set_state(run_state(run.evaluations, alerts, run="exp"))
    server = serve(tmp_path)
    server.wait_until_up()
    server.wait_for_rows("exp/dse", 6)
    tab = open_tab(server)
    wait(tab, "app.runs.get('exp/dse')?.alerts?.length === 5")
    listed = tab.frame.locator(".alerts li .head").all_inner_texts()
    assert listed == [
        "watcher: three checkpoints failed",
        "watcher: the device is nearly full",
        "watcher: the disk is full",
    ]


def test_the_watcher_is_alive_silent_or_gone(ready, open_tab):
    tab = open_tab(ready, fragment=showing("falling/dse"))
    told = tab.frame.evaluate(
        """async () => {
          const {watcherText} = await import('./static/alerts.js');
          const base = {alive: true, seen: 1000, every: 60, queue: 2, current: 'a.pth', message: ''};
          const later = [[base, 1030], [{...base, current: '', queue: 0}, 1030], [base, 1000 + 7200],
            [{...base, alive: false}, 1000 + 7200], [null, 0]];
          return later.map(([watcher, now]) => { const {tone, text} = watcherText(watcher, now);
            return [tone, text]; });
        }"""
    )
    assert told == [
        ["alive", "measuring a.pth · 2 waiting"],
        ["alive", "watching"],
        ["silent", "watcher silent, last seen 2 h ago"],
        ["none", "watcher ended 2 h ago"],
        ["none", "no watcher"],
    ]


def test_run_list_filters_sorts_and_chooses(ready, open_tab):
    tab = open_tab(ready, query="&runFilter=falling|healthy", fragment=showing("falling/dse", "healthy/dse"))
    names = tab.frame.locator(".runs .name")
    assert sorted(names.all_inner_texts()) == ["falling", "healthy"]
    search = tab.frame.get_by_role("searchbox")
    search.fill("heal")
    assert names.all_inner_texts() == ["healthy"]
    search.fill("[")  # no regular expression: plain text
    assert names.all_inner_texts() == []
    search.fill("falling|healthy")
    tab.frame.get_by_role("button", name="Table").click()
    tab.frame.locator("th button", has_text="Change").click()
    assert names.all_inner_texts() == ["healthy", "falling"]
    tab.frame.locator("th button", has_text="Change").click()
    assert names.all_inner_texts() == ["falling", "healthy"]
    assert "firing" in tab.frame.locator("tr", has_text="falling").inner_text()
    tab.frame.get_by_label("Show healthy").uncheck()
    wait(tab, "app.drawn.length === 1")
    assert tab.summary()["drawn"] == ["falling/dse"]


def test_alert_list_zooms_to_its_alert(ready, open_tab):
    tab = open_tab(ready, fragment=showing("falling/dse"))
    row = tab.frame.locator(".alerts li")
    assert row.count() == 1
    assert "degraded since epoch" in row.inner_text()
    row.get_by_role("button", name="Details").click()
    assert "The best checkpoint is kept." in row.inner_text()
    full = tab.summary()["panels"][0]["x"]
    row.get_by_role("button", name="Zoom").click()
    low, high = tab.summary()["panels"][0]["x"]
    assert full[0] < low < high


def test_a_link_shows_the_same_view(ready, open_tab):
    tab = open_tab(ready, host=True, fragment=showing("falling/dse", "healthy/dse", focus="healthy/dse"))
    tab.do(
        "await app.set({axis: 'step', lambda: 0.5, zoom: [5000, 20000], panels: new Set(['why', 'loss'])});"
        "app.set({logLoss: true})"
    )
    tab.do("const run = app.runs.get('healthy/dse'); app.choose(run.id, run.points.columns.seq[7])")
    fragment = tab.page.url.split("#dse", 1)[1]
    view = tab.summary()["view"]
    again = open_tab(ready, host=True, fragment=fragment)
    assert again.summary()["view"] == view
    assert [panel["key"] for panel in again.summary()["panels"]] == ["dse", "why", "loss"]
    assert again.summary()["panels"][0]["x"] == [5000, 20000]


# The page looks for new data every ten seconds; here every tenth of one, so that a test sees it.
HURRIED = "const slow = setInterval; window.setInterval = (f, ms, ...more) => slow(f, ms / 100, ...more);"


def test_state_survives_a_visit_to_another_tab_and_polling_rests_meanwhile(ready, open_tab):
    tab = open_tab(ready, host=True, fragment=showing("falling/dse", lam="0.5"), script=HURRIED)
    asked = []
    tab.page.on("request", lambda request: request.url.endswith("/plugin/dse/runs") and asked.append(1))
    with tab.page.expect_request("**/plugin/dse/runs"):
        pass
    tab.page.get_by_role("tab", name="Time Series").click()
    tab.frame.wait_for_function("innerHeight === 0")
    wait(tab, "!app.refreshing")
    asked.clear()
    tab.page.wait_for_timeout(500)  # five times as long as the pause between looks
    assert asked == []
    assert "p.dse" not in tab.page.url.split("#")[1].split("&")[0]
    with tab.page.expect_request("**/plugin/dse/runs"):
        tab.page.get_by_role("tab", name="DSE").click()
    tab.frame.wait_for_function("innerHeight > 0")
    assert tab.run("falling/dse")["line"]["lambda"] == 0.5
    assert tab.frame.evaluate(INKED) == [True] * 4


def test_dark_and_light_follow_tensorboard(ready, open_tab):
    tab = open_tab(ready, host=True, query="?darkMode=true", fragment=showing("falling/dse"))
    colour = "getComputedStyle(document.body).backgroundColor"
    assert tab.frame.evaluate(colour) == "rgb(48, 48, 48)"
    tab.page.evaluate("document.body.classList.remove('dark-mode')")
    tab.frame.wait_for_function(f"{colour} === 'rgb(255, 255, 255)'")
    assert tab.frame.evaluate(CONTRAST) == []
    tab.page.evaluate("document.body.classList.add('dark-mode')")
    tab.frame.wait_for_function(f"{colour} === 'rgb(48, 48, 48)'")
    assert tab.frame.evaluate(CONTRAST) == []


# Texts whose contrast with what lies behind them is below 4.5 : 1 (WCAG AA).
CONTRAST = """() => {
  const parse = (text) => { const p = text.match(/[\\d.]+/g).map(Number); return [p[0], p[1], p[2],
    p[3] ?? 1]; };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const c = parse(getComputedStyle(at).backgroundColor); if (c[3] === 1) return c; }
    return [255, 255, 255, 1];
  };
  const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => v / 255).map((v) =>
    v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const poor = [];
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility() || node.closest('[hidden]')) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${node.tagName}.${node.className} "${node.textContent.slice(0,
      30)}" ${ratio.toFixed(2)}`);
  }
  return poor;
}"""


@pytest.mark.parametrize("size", [(1024, 768), (1400, 900), (3840, 2160)], ids=["1024", "1400", "4k"])
def test_nothing_sticks_out_sideways(servers, open_tab, size):
    server = servers["fast"]
    server.wait_for_rows("falling/dse", 40)
    tab = open_tab(server, fragment=showing("falling/dse", "healthy/dse"), size=size)
    assert tab.frame.evaluate("document.documentElement.scrollWidth <= innerWidth")
    outside = tab.frame.evaluate(
        """() => [...document.querySelectorAll('button, input, select, h2, h3, code, canvas')]
             .filter((node) => node.checkVisibility() && !node.closest('.menu-body'))
             .filter((node) => { const box = node.getBoundingClientRect();
               return box.left < -1 || box.right > innerWidth + 1; })
             .map((node) => node.outerHTML.slice(0, 80))"""
    )
    assert outside == []


def test_controls_have_names_and_the_charts_a_description(ready, open_tab):
    tab = open_tab(ready, fragment=showing("falling/dse"))
    unnamed = tab.frame.evaluate(
        """() => [...document.querySelectorAll('button, input, select, [role=img]')].filter((node) =>
             !(node.textContent.trim() || node.getAttribute('aria-label')
               || node.closest('label')?.textContent.trim() || node.placeholder))
             .map((node) => node.outerHTML)"""
    )
    assert unnamed == []
    assert "Arrow keys" in tab.frame.locator(".charts").get_attribute("aria-label")


def test_csv_holds_every_checkpoint_and_runs_no_formula(ready, open_tab):
    tab = open_tab(ready, fragment=showing("falling/dse", "healthy/dse"))
    tab.frame.locator("summary", has_text="Export").click()
    with tab.page.expect_download() as waiting:
        tab.frame.get_by_role("button", name="CSV").click()
    with open(waiting.value.path(), newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 80
    expected = Series.from_evaluations(_falling(ready))
    ours = [row for row in rows if row["run"] == "falling"]
    assert [row["status"] for row in ours].count("failed") == 2
    assert ours[17]["dse"] == ""
    assert ours[17]["reason"].startswith("checkpoint0090.pth ends after")
    best = next(row for row in ours if row["candidate"] == "1")
    assert best["path"] == f"checkpoint{int(expected.x[expected.best]):04d}.pth"
    assert float(best["dse"]) == pytest.approx(expected.dse[expected.best], rel=1e-12)
    assert float(best["dse_se"]) == pytest.approx(expected.dse_se[expected.best], rel=1e-9)
    cells = tab.frame.evaluate(
        """async () => {
          const {cell} = await import('./static/exports.js');
          return ['=1+1', '-2', 'a,"b"', -2, NaN].map(cell);
        }"""
    )
    assert cells == ["'=1+1", "'-2", '"a,""b"""', "-2", ""]


def test_png_shows_the_charts(ready, open_tab):
    from PIL import Image

    tab = open_tab(ready, fragment=showing("falling/dse"))
    tab.frame.locator("summary", has_text="Export").click()
    with tab.page.expect_download() as waiting:
        tab.frame.get_by_role("button", name="PNG").click()
    with open(waiting.value.path(), "rb") as file, Image.open(io.BytesIO(file.read())) as image:
        assert image.width > 600
        assert image.height > 400
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_printed_it_is_one_light_page_without_controls(ready, open_tab, dark):
    tab = open_tab(ready, fragment=showing("falling/dse", "healthy/dse"))
    if dark:
        tab.page.emulate_media(color_scheme="dark")
        wait(tab, "document.documentElement.dataset.theme === 'dark'")
    tab.frame.locator(".tile").first.wait_for()
    seen = """() => [getComputedStyle(document.body).backgroundColor, app.charts.plots[0].u.width,
      [...document.querySelectorAll('button:not(.name), select, input')]
        .filter((node) => node.checkVisibility()).map((node) => node.outerHTML)]"""
    tab.frame.evaluate(
        f"""() => {{ const app = window.__dse.app; const seen = {seen};
          addEventListener('beforeprint', () => {{ window.printed = seen(); }}); }}"""
    )
    before = tab.frame.evaluate("window.__dse.app.charts.plots[0].u.width")
    document = tab.page.pdf(format="A4", print_background=True)
    assert len(re.findall(rb"/Type\s*/Page\b", document)) == 1
    assert tab.frame.evaluate("window.printed") == ["rgb(255, 255, 255)", 718, []]
    wait(tab, f"app.charts.plots[0].u.width === {before}")  # back on the screen
    assert tab.frame.evaluate("document.documentElement.dataset.theme") == ("dark" if dark else "light")


def test_axes_place_loss_and_checkpoints_alike(each_ready, open_tab):
    tab = open_tab(each_ready, fragment=showing("falling/dse"))
    for axis, first, last in (
        ("epoch", 5, 200),
        ("step", 1250, 50_000),
        ("wall", None, None),
        ("relative", None, None),
    ):
        tab.frame.locator(f'[data-axis="{axis}"]').click()
        ends = tab.do(
            "const xs = app.charts.plots.map(({panel}) => panel.lines[0].x);"
            "return xs.map((x) => [x[0], x[x.length - 1]]);"
        )
        if first:
            assert ends[0] == [first, last]
        assert ends[3][1] == pytest.approx(ends[0][1], rel=1e-9)  # the loss ends with the last checkpoint
        assert all(panel["x"] == tab.summary()["panels"][0]["x"] for panel in tab.summary()["panels"])


def test_a_run_without_loss_says_so(each_ready, open_tab):
    each_ready.wait_for_rows("lossless/dse", 12)
    tab = open_tab(each_ready, fragment=showing("lossless/dse"))
    assert "no scalars found beside lossless" in tab.text('.panel[data-panel="loss"]')
    assert "shows no degradation" in tab.text(".answer")


def test_out_of_order_and_repeated_checkpoints_make_one_line(each_ready, open_tab):
    each_ready.wait_for_rows("shuffled/dse", 23)
    tab = open_tab(each_ready, fragment=showing("shuffled/dse"))
    wait(tab, "app.runs.get('shuffled/dse').points?.rows === 23")
    assert tab.run("shuffled/dse")["line"]["length"] == 20
    x = tab.do("return [...app.runs.get('shuffled/dse').drawn.x]")
    assert x == sorted(x)


@pytest.mark.parametrize("loader", ["fast", "python"])
def test_new_checkpoints_appear_and_hostile_texts_stay_texts(servers, logdir, synthetic, open_tab, loader):
    """Every text field that comes from outside is a page of HTML; numbers may be anything."""
    server, name = servers[loader], f"zoo/{loader}"
    base = synthetic.evaluation(
        0, epoch=1.0, progress=0.1, degraded=False, noise=np.zeros(3), seq=10**15, clock=synthetic.START + 5e6
    )
    evaluations = []
    for k in range(6):
        source = Source(
            path=f"{k}{HOSTILE}",
            aliases=(HOSTILE,),
            mtime=synthetic.START + k,
            epoch=float(k),
            epoch_source=HOSTILE,
            step=k * 10,
            step_source=HOSTILE,
            layout=HOSTILE,
            encoder=HOSTILE,
            arch=HOSTILE,
        )
        broken = Components(m_inter=math.nan, m_intra_image=math.inf, m_intra_batch=-math.inf, m_dim=math.nan)
        evaluations.append(
            Evaluation(
                status="failed" if k == 4 else "scored",
                source=source,
                settings=None if k == 4 else Settings(images=HOSTILE, num_images=3, layer=HOSTILE),
                components=None if k == 4 else broken if k == 2 else base.components,
                reason=HOSTILE,
                error=HOSTILE,
                seq=base.seq + k,
                wall_time=math.inf if k == 1 else 1.0,
                companions={HOSTILE[:60]: 1.0, "fine": math.nan},
                seconds={HOSTILE: 1.0},
            )
        )
    alert = Alert(
        kind="degradation",
        status="firing",
        run=HOSTILE,
        message=HOSTILE,
        cause=HOSTILE,
        axis=HOSTILE,
        since=1.0,
        best_path=HOSTILE,
        key=HOSTILE,
        seq=base.seq + 50,
        epoch=3.0,
    )
    watcher = {"alive": True, "seen": 1e300, "every": 1, "queue": 3, "current": HOSTILE, "message": HOSTILE}
    writer = EventWriter(logdir / name / "dse")
    for record in evaluations[:5]:
        writer.add_evaluation(record)
    writer.add_alert(alert)
    writer.set_state(run_state(evaluations[:5], [alert], run=HOSTILE, watcher=watcher))
    writer.flush()
    server.wait_for_rows(f"{name}/dse", 5)
    tab = open_tab(server, fragment=showing(f"{name}/dse"))
    wait(tab, f"app.runs.get('{name}/dse')?.points?.rows === 5")
    tab.do(
        "for (const name of app.view.companionNames) app.view.panels.add(`companion:${name}`);"
        "await app.loadAndDraw();"
    )
    gap = tab.do(f"const run = app.runs.get('{name}/dse'); return [...run.drawn.index]")
    assert gap == [0, 1, -1, 2]  # the values that are no numbers leave a gap
    for k in range(5):
        tab.do(f"app.card.open = true; app.choose('{name}/dse', {base.seq + k})")
        tab.frame.locator(".card .path code").wait_for()
        assert tab.frame.locator(".card .path code").text_content() == f"{k}{HOSTILE}"
    writer.add_evaluation(evaluations[5])
    writer.set_state(run_state(evaluations, [alert], run=HOSTILE, watcher=watcher))
    writer.close()
    server.wait_for_rows(f"{name}/dse", 6)
    server.wait_for(lambda: '"n_written": 6' in json.dumps(server.get("runs").json()))
    tab.do("await app.refresh()")
    assert tab.run(f"{name}/dse")["rows"] == 6
    assert tab.frame.evaluate("window.broken") is None
    assert (
        tab.frame.evaluate("document.querySelectorAll('img, script:not([nonce])').length") <= 1
    )  # the host's own
    tab.frame.get_by_role("button", name="Details").click()
    assert tab.frame.locator(".alerts .message").inner_text() == HOSTILE


def test_empty_folder_shows_the_command_to_start(serve, synthetic, tmp_path_factory, open_tab):
    folder = tmp_path_factory.mktemp("empty logs")
    synthetic.write_loss(folder / "exp1", 2, 1.0, 0, synthetic.START)
    server = serve(folder)
    server.wait_until_up()
    server.wait_for(lambda: server.get("runs").status == 200)
    tab = open_tab(server)
    wait(tab, "!app.empty.hidden")
    assert tab.text(".empty code") in (
        f"dse-monitor watch '{folder}/exp1' --images IMAGES",
        f"dse-monitor watch '{folder}/RUN' --images IMAGES",
    )
    synthetic.write_run(folder / "exp1", checkpoints=5, degraded=False, loss=False)
    server.wait_for_rows("exp1/dse", 5)
    tab.do("await app.refresh()")
    assert tab.summary()["drawn"] == ["exp1/dse"]
    synthetic.write_run(
        folder / "exp2", checkpoints=5, degraded=False, loss=False, clock=synthetic.START + 60
    )
    server.wait_for_rows("exp2/dse", 5)
    tab.do("await app.refresh()")
    assert set(tab.summary()["drawn"]) == {"exp1/dse", "exp2/dse"}  # nobody has chosen: the newest are shown


def test_a_sample_of_the_checkpoints_is_not_drawn_silently(serve, synthetic, tmp_path_factory, open_tab):
    folder = tmp_path_factory.mktemp("sampled")
    synthetic.write_run(folder / "exp", checkpoints=40)
    server = serve(folder, "--samples_per_plugin", "dse=5", prefix="/p")
    server.wait_until_up()
    server.wait_for_rows("exp/dse", 20)
    tab = open_tab(server, host=True)
    assert "20 of 40 checkpoints loaded" in tab.text('[data-banner="incomplete"]')
    tab.do("await app.refresh(); await app.refresh()")
    assert "--samples_per_plugin=dse=0" in tab.text('[data-banner="incomplete"]')


def test_server_that_ends_is_said_and_what_is_shown_stays(serve, synthetic, tmp_path_factory, browser):
    folder = tmp_path_factory.mktemp("ending")
    synthetic.write_run(folder / "exp", checkpoints=12)
    server = serve(folder)
    server.wait_until_up()
    server.wait_for_rows("exp/dse", 12)
    page = browser.new_page()
    page.goto(f"{server.root}/data/plugin_entry.html?name=dse")
    page.locator("body[data-ready]").wait_for()
    server.process.terminate()
    server.process.wait()
    page.evaluate("window.__dse.app.refresh()")
    assert "TensorBoard does not answer" in page.locator('[data-banner="lost"]').inner_text()
    assert page.evaluate("window.__dse.summary().panels[0].rows") == 12
    page.close()
