/** The page: what is known and what is chosen become charts, lists and an answer. */

import { AXES } from './axes.js';
import { AlertList, answer, confirmed } from './alerts.js';
import { Card } from './card.js';
import { Charts } from './charts.js';
import { el, short } from './dom.js';
import { saveCsv, savePicture } from './exports.js';
import { Memory, followReloads, followTheme, isVisible, readAddress } from './host.js';
import { FeatureMaps } from './images.js';
import { Store } from './loading.js';
import { chartKey, pageKey } from './keys.js';
import { banners, emptyPage } from './notices.js';
import { layOut } from './page.js';
import { RunList, matcher } from './runs.js';
import { buildScene, noMarks, prepare, translate } from './scene.js';
import { adaptiveLambda, candidates, lineOf, orderOf } from './series.js';
import { summary } from './summary.js';
import { Toolbar } from './toolbar.js';
import { applyAddress, newView, recall, remember } from './view.js';

const POLL_MS = 10_000; // pause between looks for new data while the tab is open
const SHOWN_AT_FIRST = 10; // newest runs
const SHOWN_AT_MOST = 50;

class App {
  constructor(body) {
    this.store = new Store();
    this.view = newView();
    this.build(body);
  }

  get runs() {
    return this.store.runs;
  }

  // ---- structure ------------------------------------------------------------------------------------------------

  build(body) {
    this.toolbar = new Toolbar({
      set: (changes) => this.set(changes),
      zoom: (range) => this.zoom(range),
      tag: (tag) => this.chooseTag(tag),
      csv: () => saveCsv(this.drawn),
      picture: () => savePicture(this.charts),
    });
    Object.assign(this, layOut(body, this.toolbar.root, (event) => chartKey(this, event)));

    this.charts = new Charts(this.chartRoot, {
      choose: (run, seq) => this.choose(run, seq),
      zoom: (range) => this.zoom(range),
    });
    this.list = new RunList(this.runRail, {
      toggle: (id) => this.toggleRun(id),
      all: (on) => this.showAll(on),
      only: (id) => this.set({ shown: new Set([id]), focus: id, chosen: null }, true),
      focus: (id) => this.focusRun(id),
      filter: (text) => this.set({ filter: text }),
      sort: (sort, descending) => this.set({ sort, descending }),
      colour: (id, colour) => this.set({ colours: { ...this.view.colours, [id]: colour } }),
    });
    this.card = new Card(this.cardRoot);
    this.maps = new FeatureMaps(this.mapRoot, {
      choose: (seq) => this.choose(this.view.focus, seq),
      details: (seqs) => this.store.details(this.runs.get(this.view.focus), seqs),
      kind: (maps) => this.set({ maps }),
    });
    this.alertList = new AlertList(this.alertRoot, { zoom: (run, alert) => this.zoomTo(run, alert) });
  }

  // ---- data -----------------------------------------------------------------------------------------------------

  async start() {
    followTheme(() => {
      this.charts.resize();
      this.charts.redraw();
      this.draw();
    });
    await this.refresh();
    followReloads(() => this.refresh());
    setInterval(() => isVisible() && this.refresh(), POLL_MS);
    document.addEventListener('visibilitychange', () => isVisible() && this.refresh());
    new ResizeObserver(() => {
      const open = window.innerHeight > 0;
      if (open && !this.wasOpen) this.refresh();
      this.wasOpen = open;
    }).observe(document.documentElement);
    try {
      window.parent.addEventListener('hashchange', () => {
        if (Object.keys(readAddress()).length) applyAddress(this.view);
        this.draw();
      });
    } catch {
      // another origin: its address is not ours to follow
    }
    document.addEventListener('keydown', (event) => pageKey(this, event));
  }

  /** Look for new data; never twice at once. */
  async refresh() {
    if (this.refreshing) {
      this.again = true;
      return this.refreshing;
    }
    this.refreshing = this.load().finally(() => (this.refreshing = null));
    await this.refreshing;
    if (this.again) {
      this.again = false;
      await this.refresh();
    }
    return undefined;
  }

  async load() {
    if (!(await this.store.loadRuns())) return this.draw();
    if (!this.memory) {
      this.memory = new Memory(this.store.logdir);
      recall(this.view, this.memory);
      applyAddress(this.view);
    }
    if (!this.runs.size) return this.drawEmpty();
    await this.loadAndDraw((run) => this.store.loadScalars(run, this.view.tag));
    document.body.dataset.ready = '1';
    return undefined;
  }

  /** Read what the runs shown lack, and draw: first the points, then what stands beside them. */
  async loadAndDraw(readScalars = (run) => (run.scalars ? null : this.store.loadScalars(run, this.view.tag))) {
    const { store, view } = this;
    this.chooseRuns();
    this.drawLists();
    const shown = this.shownRuns();
    await Promise.all(shown.map((run) => store.loadRun(run)));
    store.timings.arrived = performance.now();
    this.draw();
    store.timings.drawn = performance.now();
    await Promise.all(shown.map(readScalars));
    const names = await store.companionNames(this.runs.get(view.focus));
    view.companionNames = [...new Set([...view.companionNames, ...names])];
    if ([...view.panels].some((key) => key.startsWith('companion:'))) await Promise.all(shown.map((run) => store.loadCompanions(run)));
    this.draw();
  }

  listed() {
    return [...this.runs.values()].filter(matcher(this.view.filter));
  }

  /** The newest of the listed runs, until somebody chooses; the gravest alert among them has the focus. */
  chooseRuns() {
    const { view } = this;
    for (const run of this.runs.values()) run.colour = view.colours[run.id];
    if (view.shown) view.shown = new Set([...view.shown].filter((id) => this.runs.has(id)));
    if (!view.ownChoice || (!view.shown?.size && !this.emptied)) {
      const newest = this.listed().sort((a, b) => (b.start ?? 0) - (a.start ?? 0)).slice(0, SHOWN_AT_FIRST);
      view.shown = new Set(newest.map((run) => run.id));
      view.ownChoice = false;
    }
    if (!view.shown.has(view.focus)) {
      const rank = (run) => ({ firing: 2, pending: 1 })[run.state?.alert?.status] ?? 0;
      const points = (run) => Math.min(run.state?.points ?? 0, 1);
      const [first] = this.shownRuns().sort((a, b) => rank(b) - rank(a) || points(b) - points(a) || (b.start ?? 0) - (a.start ?? 0));
      view.focus = first?.id ?? null;
      view.chosen = null;
    }
  }

  shownRuns() {
    return [...(this.view.shown ?? [])].map((id) => this.runs.get(id)).filter(Boolean);
  }

  // ---- choices --------------------------------------------------------------------------------------------------

  set(changes, own = false) {
    Object.assign(this.view, changes);
    if (own) {
      this.view.ownChoice = true;
      this.emptied = this.view.shown?.size === 0;
    }
    remember(this.view, this.memory);
    if (!('shown' in changes || 'panels' in changes)) return this.draw();
    return this.loadAndDraw();
  }

  /** Nothing but the charts depends on the zoom. */
  zoom(range) {
    this.view.zoom = range;
    this.toolbar.reset.hidden = range === null;
    this.charts.zoom(range);
    remember(this.view, this.memory);
  }

  toggleRun(id) {
    const shown = new Set(this.view.shown);
    if (!shown.delete(id)) shown.add(id);
    return this.set({ shown }, true);
  }

  showAll(on) {
    const shown = new Set(this.view.shown);
    const listed = this.listed().sort((a, b) => (b.start ?? 0) - (a.start ?? 0));
    for (const run of listed) {
      if (!on) shown.delete(run.id);
      else if (shown.size < SHOWN_AT_MOST) shown.add(run.id);
    }
    return this.set({ shown }, true);
  }

  focusRun(id) {
    const shown = new Set(this.view.shown).add(id);
    const changes = { focus: id, chosen: this.view.focus === id ? this.view.chosen : null };
    return this.view.shown.has(id) ? this.set(changes) : this.set({ ...changes, shown }, true);
  }

  choose(id, seq) {
    this.set({ focus: id, chosen: seq });
  }

  async chooseTag(tag) {
    this.view.tag = tag;
    remember(this.view, this.memory);
    await Promise.all(this.shownRuns().map((run) => this.store.loadScalars(run, tag)));
    this.draw();
  }

  zoomTo(run, alert) {
    const focus = run.id;
    this.view.focus = focus;
    prepare(run, this.view.lambda, this.view.axis);
    const from = translate(run, alert.axis, Number.isFinite(alert.best_at) ? alert.best_at : alert.since);
    const xs = run.drawn.x;
    const to = xs[xs.length - 1];
    const pad = (to - from) * 0.1;
    const { epoch, step } = run.points.columns;
    const told = (value, known) => (known === null || known === undefined ? !Number.isFinite(value) : value === known);
    const row = run.line.rows.findIndex((r) => told(epoch[r], alert.epoch) && told(step[r], alert.step));
    const chosen = row >= 0 ? run.points.columns.seq[run.line.rows[row]] : this.view.chosen;
    this.set({ focus, chosen, zoom: pad > 0 ? [from - pad, to + pad] : null });
  }

  // ---- drawing --------------------------------------------------------------------------------------------------

  draw() {
    if (!this.runs.size) return;
    const focus = this.runs.get(this.view.focus);
    this.skeleton.hidden = true;
    this.empty.hidden = true;
    this.main.hidden = false;
    this.alertRoot.hidden = false;
    const ready = this.shownRuns().filter((run) => run.points);
    for (const run of ready) prepare(run, this.view.lambda, this.view.axis ?? (focus?.points ? this.axisOf(focus) : null));
    const other = (run) => focus?.points && run.line.rows.length && focus.line.rows.length && run.line.settings !== focus.line.settings;
    this.apart = new Set(ready.filter(other).map((run) => run.id));
    this.drawn = ready.filter((run) => !this.apart.has(run.id));
    this.drawLists();
    this.banners.replaceChildren(...banners({ focus, shown: this.shownRuns(), apart: [...this.apart].map((id) => this.runs.get(id)), lost: this.store.lost }));
    this.toolbar.draw(focus, this.view);
    if (!focus?.points) {
      this.answer.replaceChildren(el('span', { text: focus?.problem ?? 'Choose a run.' }));
      this.charts.draw({ axis: 'epoch', zoom: null, range: [0, 1], panels: [], marks: noMarks() });
      this.card.clear('No run is shown.');
      return;
    }
    this.toolbar.drawTag(focus);
    const { view } = this;
    const scene = buildScene(this.drawn, focus, { ...view, lossTools: this.toolbar.lossTools, dseTools: this.toolbar.reset });
    this.charts.draw(scene);
    this.drawCard(focus);
    const chosenIndex = focus.indexOfRow.get(focus.rowOfSeq.get(view.chosen));
    this.maps.draw(focus, chosenIndex ?? null, view.maps);
    this.drawAnswer(focus);
    const items = this.shownRuns().flatMap((run) => confirmed(run.alerts ?? []).map((alert) => ({ run, alert })));
    items.sort((a, b) => b.alert.wall_time - a.alert.wall_time || b.alert.seq - a.alert.seq);
    this.alertList.draw(items.slice(0, 200), this.store.now());
    this.readFailures();
    remember(view, this.memory);
  }

  axisOf(run) {
    if (!run.line) prepare(run, this.view.lambda, null);
    return run.line.axis;
  }

  drawLists() {
    const listed = this.listed();
    this.list.draw(listed, { ...this.view, apart: this.apart ?? new Set(), total: this.runs.size });
  }

  drawAnswer(focus) {
    const bestSeq = focus.line.best >= 0 ? focus.points.columns.seq[focus.line.rows[focus.line.best]] : null;
    const also = this.shownRuns()
      .filter((run) => run !== focus && run.state?.alert?.status === 'firing')
      .map((run) => el('button.quiet.also', { type: 'button', text: `▲ ${short(run.name.split('/').pop(), 40)}`, title: `${short(run.name, 200)} is degrading too: show it`, onclick: () => this.focusRun(run.id) }));
    const { tone, parts, watcher } = answer(focus, focus.line, focus.details.get(bestSeq), this.store.now(), also);
    this.answer.className = `answer ${tone}`;
    this.answer.replaceChildren(
      el('div.sentence', {}, ...parts),
      el('span.watcher', { title: watcher.title }, el(`i.dot.${watcher.tone}`, {}), watcher.text),
    );
  }

  /** The chosen checkpoint, else the best, else the last one that failed. */
  drawCard(focus) {
    const { line, points } = focus;
    let row = focus.rowOfSeq.get(this.view.chosen);
    const isDefault = row === undefined;
    if (isDefault) row = line.best >= 0 ? line.rows[line.best] : points.rows - 1;
    if (row < 0) {
      this.card.clear('No checkpoint was measured yet.');
      return;
    }
    const seq = points.columns.seq[row];
    const show = () => this.card.draw({ run: focus, row, index: focus.indexOfRow.get(row) ?? -1, meta: focus.details.get(seq), isDefault: isDefault && line.best >= 0 });
    show();
    const best = line.best >= 0 ? [points.columns.seq[line.rows[line.best]]] : [];
    if ([seq, ...best].some((wanted) => !focus.details.has(wanted))) {
      this.store.details(focus, [seq, ...best]).then(
        () => {
          if (this.view.focus !== focus.id) return;
          show();
          this.drawAnswer(focus);
        },
        () => null,
      );
    }
  }

  /** Reasons of failed checkpoints, for their tooltips. */
  readFailures() {
    for (const run of this.drawn) {
      const seqs = run.failed.map((item) => item.seq).filter((seq) => !run.details.has(seq)).slice(-200);
      if (seqs.length) this.store.details(run, seqs).catch(() => null);
    }
  }

  async drawEmpty() {
    this.skeleton.hidden = true;
    this.main.hidden = true;
    this.alertRoot.hidden = true;
    this.empty.hidden = false;
    this.answer.replaceChildren();
    this.answer.className = 'answer';
    this.empty.replaceChildren(...(await emptyPage(this.store.logdir)));
    document.body.dataset.ready = '1';
  }
}

export async function start(body) {
  const app = new App(body);
  window.__dse = { app, summary: () => summary(app), series: { adaptiveLambda, candidates, lineOf, orderOf } };
  await app.start();
}
