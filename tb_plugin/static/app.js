/** The page: what is known, what is chosen, and how the two become charts, lists and an answer. */

import * as api from './api.js';
import { AXES, AXIS_NAMES } from './axes.js';
import { AlertList, answer, confirmed } from './alerts.js';
import { Card } from './card.js';
import { Charts } from './charts.js';
import { ago, copyButton, count, el, number, short } from './dom.js';
import { saveCsv, savePicture } from './exports.js';
import { Memory, followReloads, followTheme, isVisible, readAddress, runFilter, writeAddress } from './host.js';
import { FeatureMaps } from './images.js';
import { RunList, matcher } from './runs.js';
import { PANELS, buildScene, prepare, translate } from './scene.js';
import { adaptiveLambda, candidates, lineOf } from './series.js';

const POLL_MS = 10_000; // pause between looks for new data while the tab is open
const SHOWN_AT_FIRST = 10; // newest runs
const SHOWN_AT_MOST = 50;
const LAMBDA_SPAN = 3; // the slider ends at this multiple of the adaptive lambda

class App {
  constructor(body) {
    this.runs = new Map();
    this.total = 0;
    this.view = {
      shown: null, // Set of run ids once known; null: the newest
      focus: null,
      filter: runFilter(),
      sort: 'start',
      descending: true,
      lambda: null,
      axis: null,
      zoom: null,
      chosen: null,
      panels: new Set(PANELS.filter((panel) => panel.on).map((panel) => panel.key)),
      logLoss: false,
      tag: '',
      colours: {},
      companionNames: [],
    };
    this.timings = {};
    this.build(body);
  }

  // ---- structure ------------------------------------------------------------------------------------------------

  build(body) {
    this.answer = el('div.answer', { role: 'status', 'aria-live': 'polite' });
    this.banners = el('div.banners', {});
    this.chartRoot = el('div.charts', {
      tabIndex: 0,
      role: 'group',
      'aria-label': 'Charts over checkpoints. Arrow keys choose a checkpoint, B the best, Escape resets the zoom.',
      onkeydown: (event) => this.chartKey(event),
    });
    this.runRail = el('aside.rail.runs-rail', { 'aria-label': 'Runs' });
    this.cardRoot = el('section.card', { 'aria-label': 'Checkpoint' });
    this.mapRoot = el('section.maps-section', { 'aria-label': 'Feature maps' });
    this.sideRail = el('aside.rail.side-rail', { 'aria-label': 'Details' }, this.cardRoot, this.mapRoot);
    this.alertRoot = el('section.alert-section', { 'aria-label': 'Alerts' });
    this.main = el(
      'div.main',
      {},
      this.runRail,
      el('main.centre', {}, this.toolbar(), this.banners, this.chartRoot),
      this.sideRail,
    );
    this.empty = el('div.empty', { hidden: true });
    this.skeleton = el('div.skeleton', { 'aria-label': 'Loading' }, ...[2, 1, 1, 1].map((grow) => el('div', { style: { 'flex-grow': grow } })));
    body.replaceChildren(el('div.page', {}, this.answer, this.skeleton, this.empty, this.main, this.alertRoot));
    this.main.hidden = true;
    this.alertRoot.hidden = true;

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
      details: (seqs) => this.details(this.runs.get(this.view.focus), seqs),
    });
    this.alertList = new AlertList(this.alertRoot, { zoom: (run, alert) => this.zoomTo(run, alert) });
  }

  toolbar() {
    this.lambdaSlider = el('input', { type: 'range', min: 0, max: 3, step: 'any', 'aria-label': 'Lambda', oninput: () => this.set({ lambda: Number(this.lambdaSlider.value) }) });
    this.lambdaField = el('input.lambda-field', {
      type: 'number',
      min: 0,
      step: 0.01,
      'aria-label': 'Lambda',
      onchange: () => {
        const value = Number(this.lambdaField.value);
        this.set({ lambda: this.lambdaField.value !== '' && Number.isFinite(value) && value >= 0 ? value : null });
      },
    });
    this.adaptive = el('button.toggle', {
      type: 'button',
      text: 'adaptive',
      title: 'Std(separability) / Std(M_dim) over the run: both terms weigh the same',
      onclick: () => this.set({ lambda: null }),
    });
    this.axisButtons = AXES.map((axis) => el('button', { type: 'button', text: AXIS_NAMES[axis], 'data-axis': axis, onclick: () => this.set({ axis, zoom: null }) }));
    this.reset = el('button.quiet', { type: 'button', text: 'Reset zoom', title: 'Escape, or double-click a chart', onclick: () => this.zoom(null) });
    this.panelMenu = el('div.menu-body', { role: 'group', 'aria-label': 'Panels' });
    const menu = (label, ...items) => el('details.menu', {}, el('summary', { text: label }), ...items);
    this.menus = [
      menu('Panels', this.panelMenu),
      menu(
        'Export',
        el(
          'div.menu-body',
          {},
          el('button.item', { type: 'button', text: 'CSV, all numbers', onclick: () => saveCsv(this.drawn) }),
          el('button.item', { type: 'button', text: 'PNG of the charts', onclick: () => savePicture(this.charts) }),
        ),
      ),
    ];
    document.addEventListener('click', (event) => {
      for (const item of this.menus) if (!item.contains(event.target)) item.open = false;
    });
    this.tagSelect = el('select.tag', { 'aria-label': 'Scalar', onchange: () => this.chooseTag(this.tagSelect.value) });
    this.logBox = el('input', { type: 'checkbox', onchange: () => this.set({ logLoss: this.logBox.checked }) });
    this.lossTools = el('span', {}, this.tagSelect, el('label.soft', {}, this.logBox, 'log'));
    return el(
      'div.toolbar',
      { role: 'toolbar', 'aria-label': 'Charts' },
      el('label.lambda', { title: 'DSE = separability + λ · M_dim' }, 'λ', this.lambdaSlider, this.lambdaField),
      this.adaptive,
      el('span.grow', {}),
      el('span.segments', { role: 'group', 'aria-label': 'Axis' }, ...this.axisButtons),
      ...this.menus,
    );
  }

  // ---- data -----------------------------------------------------------------------------------------------------

  async start() {
    followTheme(() => {
      this.charts.redraw();
      this.list.view && this.drawLists();
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
        if (Object.keys(readAddress()).length) this.applyAddress();
        this.draw();
      });
    } catch {
      // another origin: its address is not ours to follow
    }
    document.addEventListener('keydown', (event) => this.key(event));
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
    let reply;
    try {
      reply = await api.runs();
      this.lost = null;
    } catch (error) {
      this.lost ??= { since: Date.now() / 1000, text: error.message };
      this.draw();
      return;
    }
    this.offset = reply.now - Date.now() / 1000;
    if (!this.memory) {
      this.logdir = reply.logdir;
      this.memory = new Memory(reply.logdir);
      this.recall();
      this.applyAddress();
    }
    this.takeRuns(reply.runs);
    if (!this.runs.size) {
      await this.drawEmpty();
      return;
    }
    this.chooseRuns();
    this.drawLists();
    await Promise.all(this.shownRuns().map((run) => this.loadRun(run)));
    this.timings.arrived = performance.now();
    this.draw();
    this.timings.drawn = performance.now();
    await Promise.all(this.shownRuns().map((run) => this.loadScalars(run)));
    await this.loadCompanions();
    this.draw();
    document.body.dataset.ready = '1';
  }

  takeRuns(found) {
    const known = this.runs;
    this.runs = new Map();
    for (const item of found) {
      const run = known.get(item.run) ?? { id: item.run, details: new Map() };
      Object.assign(run, { name: item.name, index: item.colour, start: item.start, state: item.state });
      this.runs.set(item.run, run);
    }
  }

  now() {
    return Date.now() / 1000 + (this.offset ?? 0);
  }

  listed() {
    return [...this.runs.values()].filter(matcher(this.view.filter));
  }

  /** The newest of the listed runs, until somebody chooses; the gravest alert among them has the focus. */
  chooseRuns() {
    const { view } = this;
    for (const run of this.runs.values()) run.colour = view.colours[run.id];
    if (view.shown) view.shown = new Set([...view.shown].filter((id) => this.runs.has(id)));
    if (!this.ownChoice || (!view.shown?.size && !this.emptied)) {
      const newest = this.listed().sort((a, b) => (b.start ?? 0) - (a.start ?? 0)).slice(0, SHOWN_AT_FIRST);
      view.shown = new Set(newest.map((run) => run.id));
      this.ownChoice = false;
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

  /** Points and alerts of a run, if its state says that there is something new, or something is still missing. */
  async loadRun(run) {
    const version = [run.state?.last_seq, run.state?.n_written, run.state?.n_alerts].join('-');
    const missing = run.points && run.points.rows < (run.state?.n_written ?? 0);
    if (run.version === version && !missing && run.points) return;
    const started = performance.now();
    const before = run.points?.rows ?? 0;
    try {
      const [points, alerts] = await Promise.all([api.points(run.id, run.points), run.state?.n_alerts === 0 ? [] : api.alerts(run.id)]);
      this.timings.points = performance.now() - started;
      run.points = points;
      for (const [seq, meta] of run.details) if (meta === null) run.details.delete(seq); // may be there by now
      run.alerts = alerts.filter((alert) => alert.kind !== 'test');
      run.stuck = missing && points.rows === before;
      run.version = version;
      run.problem = null;
    } catch (error) {
      run.problem = error.message;
    }
  }

  async loadScalars(run) {
    try {
      run.scalars = await api.scalars(run.id);
      const chosen = run.scalars.find((item) => item.tag === this.view.tag) ?? run.scalars.find((item) => item.score >= 50);
      if (!chosen) {
        run.loss = null;
        run.lossVersion = 'none';
        return;
      }
      const epoch = run.scalars.find((item) => item.run === chosen.run && /^((train|trainer)\/)?epoch$/i.test(item.tag));
      const [loss, epochs] = await Promise.all([api.scalar(chosen.run, chosen.tag), epoch ? api.scalar(epoch.run, epoch.tag) : null]);
      run.lossTag = chosen.tag;
      run.loss = loss;
      run.epochScalar = epochs;
      run.lossVersion = [chosen.tag, loss.rows, loss.columns.step[loss.rows - 1], epochs?.rows].join('-');
    } catch {
      run.loss ??= null;
    }
  }

  async loadCompanions() {
    const wanted = [...this.view.panels].some((key) => key.startsWith('companion:'));
    const focus = this.runs.get(this.view.focus);
    if (focus?.points && !focus.sample && focus.points.rows) {
      focus.sample = true; // one look at one checkpoint tells the names
      const c = focus.points.columns;
      const scored = Array.from(c.seq).filter((_, row) => c.status[row] === 0);
      if (scored.length) {
        const found = await this.details(focus, scored.slice(-1)).catch(() => new Map());
        const names = [...found.values()].flatMap((meta) => Object.keys(meta.companions ?? {}));
        this.view.companionNames = [...new Set([...this.view.companionNames, ...names])];
      }
    }
    if (!wanted) return;
    await Promise.all(
      this.shownRuns().map(async (run) => {
        if (run.companionsVersion === run.version || !run.points) return;
        run.companions = await api.companions(run.id).catch(() => null);
        run.companionsVersion = run.version;
      }),
    );
  }

  /** Metadata by sequence number; what is known is not asked for again. */
  async details(run, seqs) {
    const unknown = seqs.filter((seq) => !run.details.has(seq));
    if (unknown.length) {
      const found = await api.metadata(run.id, unknown);
      for (const seq of unknown) run.details.set(seq, found.get(seq) ?? null);
    }
    return run.details;
  }

  // ---- choices --------------------------------------------------------------------------------------------------

  set(changes, own = false) {
    Object.assign(this.view, changes);
    if (own) {
      this.ownChoice = true;
      this.emptied = this.view.shown?.size === 0;
    }
    this.remember();
    if (!('shown' in changes || 'panels' in changes)) return this.draw();
    return this.loadAndDraw();
  }

  /** Nothing but the charts depends on the zoom. */
  zoom(range) {
    this.view.zoom = range;
    this.reset.hidden = range === null;
    this.charts.zoom(range);
    this.remember();
  }

  async loadAndDraw() {
    this.chooseRuns();
    this.drawLists();
    await Promise.all(this.shownRuns().map((run) => this.loadRun(run)));
    this.draw();
    await Promise.all(this.shownRuns().map((run) => (run.scalars ? null : this.loadScalars(run))));
    await this.loadCompanions();
    this.draw();
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
    this.remember();
    await Promise.all(this.shownRuns().map((run) => this.loadScalars(run)));
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
    const row = run.line.rows.findIndex((r) => run.points.columns[alert.axis]?.[r] === (alert[alert.axis] ?? NaN));
    const chosen = row >= 0 ? run.points.columns.seq[run.line.rows[row]] : this.view.chosen;
    this.set({ focus, chosen, zoom: pad > 0 ? [from - pad, to + pad] : null });
  }

  /** Step through the line of the run in focus, or act on the charts. */
  chartKey(event) {
    const run = this.runs.get(this.view.focus);
    if (!run?.line?.rows.length || event.ctrlKey || event.metaKey || event.altKey) return;
    const { line, points } = run;
    const seqs = line.rows.map((row) => points.columns.seq[row]);
    const current = this.view.chosen ? seqs.indexOf(this.view.chosen) : line.best;
    const target = {
      ArrowLeft: Math.max(0, current - 1),
      ArrowRight: Math.min(seqs.length - 1, current + 1),
      Home: 0,
      End: seqs.length - 1,
    }[event.key];
    if (target === undefined) return;
    this.choose(run.id, seqs[target]);
    event.preventDefault();
  }

  key(event) {
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === 'Escape') this.zoom(null);
    else if (event.key === 'b' || event.key === 'B') this.set({ chosen: null });
    else if (event.key === '/') {
      this.list.search.focus();
      event.preventDefault();
    }
  }

  // ---- what a link and the next visit know ------------------------------------------------------------------------

  applyAddress() {
    const told = readAddress();
    const { view } = this;
    if (told.runs !== undefined) {
      view.shown = new Set(told.runs.split(',').map(decodeURIComponent));
      this.ownChoice = true;
    }
    if (told.focus) view.focus = told.focus;
    if (told.filter !== undefined) view.filter = told.filter;
    if (AXES.includes(told.axis)) view.axis = told.axis;
    const lambda = Number(told.lam);
    if (told.lam !== undefined) view.lambda = Number.isFinite(lambda) && lambda >= 0 ? lambda : null;
    const zoom = (told.zoom ?? '').split(',').map(Number);
    view.zoom = zoom.length === 2 && zoom.every(Number.isFinite) && zoom[1] > zoom[0] ? zoom : null;
    const chosen = Number(told.at);
    view.chosen = told.at && Number.isSafeInteger(chosen) ? chosen : null;
    if (told.panels !== undefined) view.panels = new Set(told.panels.split(',').filter(Boolean).map(decodeURIComponent));
    if (told.tag) view.tag = told.tag;
    if (told.log !== undefined) view.logLoss = told.log === '1';
    for (const key of view.panels) {
      const name = key.startsWith('companion:') ? key.slice(10) : '';
      if (name && !view.companionNames.includes(name)) view.companionNames.push(name);
    }
  }

  recall() {
    const kept = this.memory.read();
    const { view } = this;
    if (Array.isArray(kept.shown)) {
      view.shown = new Set(kept.shown);
      this.ownChoice = true;
    }
    if (Array.isArray(kept.panels)) view.panels = new Set(kept.panels);
    if (typeof kept.tag === 'string') view.tag = kept.tag;
    if (typeof kept.logLoss === 'boolean') view.logLoss = kept.logLoss;
    for (const [id, colour] of Object.entries(kept.colours ?? {})) {
      if (/^#[0-9a-f]{6}$/i.test(colour)) view.colours[id] = colour;
    }
  }

  remember() {
    const { view } = this;
    const usual = PANELS.filter((panel) => panel.on).map((panel) => panel.key).join();
    const panels = [...view.panels];
    const shown = this.ownChoice && view.shown ? [...view.shown] : null;
    this.memory?.write({ shown, panels, tag: view.tag, logLoss: view.logLoss, colours: view.colours });
    writeAddress({
      runs: shown && shown.map(encodeURIComponent).join(','),
      focus: view.focus,
      filter: view.filter,
      axis: view.axis,
      lam: view.lambda,
      zoom: view.zoom && view.zoom.map((edge) => Number(edge.toPrecision(12))).join(','),
      at: view.chosen,
      panels: panels.join() === usual ? null : panels.map(encodeURIComponent).join(','),
      tag: view.tag,
      log: view.logLoss ? 1 : null,
    });
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
    this.drawBanners(focus);
    this.drawTools(focus);
    if (!focus?.points) {
      this.answer.replaceChildren(el('span', { text: focus?.problem ?? 'Choose a run.' }));
      this.charts.draw({ axis: 'epoch', zoom: null, range: [0, 1], panels: [], marks: emptyMarks() });
      this.card.clear('No run is shown.');
      return;
    }
    this.drawTag(focus);
    const { view } = this;
    const scene = buildScene(this.drawn, focus, { ...view, lossTools: this.lossTools, dseTools: this.reset });
    this.charts.draw(scene);
    this.drawCard(focus);
    const chosenIndex = focus.indexOfRow.get(focus.rowOfSeq.get(view.chosen));
    this.maps.draw(focus, chosenIndex ?? null);
    this.drawAnswer(focus);
    const items = this.shownRuns().flatMap((run) => confirmed(run.alerts ?? []).map((alert) => ({ run, alert })));
    items.sort((a, b) => b.alert.wall_time - a.alert.wall_time || b.alert.seq - a.alert.seq);
    this.alertList.draw(items.slice(0, 200), this.now());
    this.readFailures();
    this.remember();
  }

  axisOf(run) {
    if (!run.line) prepare(run, this.view.lambda, null);
    return run.line.axis;
  }

  drawLists() {
    const listed = this.listed();
    this.list.draw(listed, { ...this.view, apart: this.apart ?? new Set(), total: this.runs.size });
  }

  drawTools(focus) {
    const { view } = this;
    const adaptive = focus?.line?.adaptive ?? 1;
    const value = view.lambda ?? adaptive;
    this.lambdaSlider.max = Math.max(LAMBDA_SPAN * adaptive, value);
    this.lambdaSlider.value = value;
    if (document.activeElement !== this.lambdaField) this.lambdaField.value = Number(value.toPrecision(3));
    this.adaptive.setAttribute('aria-pressed', String(view.lambda === null));
    this.adaptive.textContent = view.lambda === null ? 'adaptive' : `back to ${number(adaptive, 2)}`;
    const axis = view.axis ?? focus?.line?.axis;
    for (const button of this.axisButtons) button.setAttribute('aria-pressed', String(button.dataset.axis === axis));
    this.reset.hidden = view.zoom === null;
    const boxes = [
      ...PANELS.map(({ key, title }) => [key, title]),
      ...view.companionNames.map((name) => [`companion:${name}`, name]),
    ];
    const names = JSON.stringify(boxes);
    if (names !== this.panelNames) {
      this.panelNames = names;
      this.panelMenu.replaceChildren(
        ...boxes.map(([key, title]) =>
          el(
            'label.item',
            {},
            el('input', {
              type: 'checkbox',
              'data-panel': key,
              onchange: (event) => {
                const panels = new Set(this.view.panels);
                if (event.target.checked) panels.add(key);
                else panels.delete(key);
                this.set({ panels });
              },
            }),
            short(title, 60),
          ),
        ),
      );
    }
    for (const box of this.panelMenu.querySelectorAll('input')) box.checked = view.panels.has(box.dataset.panel);
    this.logBox.checked = view.logLoss;
  }

  drawTag(focus) {
    const tags = [...new Set((focus.scalars ?? []).map((item) => item.tag))];
    const key = JSON.stringify([tags, focus.lossTag, focus.loss?.rows > 0]);
    if (key === this.tagKey) return;
    this.tagKey = key;
    const options = tags.map((tag) => el('option', { value: tag, text: short(tag, 80) }));
    if (!focus.loss?.rows) options.unshift(el('option', { value: '', text: 'choose…' }));
    this.tagSelect.replaceChildren(...options);
    this.tagSelect.value = focus.loss?.rows ? focus.lossTag : '';
    this.lossTools.hidden = !tags.length;
  }

  drawAnswer(focus) {
    const bestSeq = focus.line.best >= 0 ? focus.points.columns.seq[focus.line.rows[focus.line.best]] : null;
    const also = this.shownRuns()
      .filter((run) => run !== focus && run.state?.alert?.status === 'firing')
      .map((run) => el('button.quiet.also', { type: 'button', text: `▲ ${short(run.name.split('/').pop(), 40)}`, title: `${short(run.name, 200)} is degrading too: show it`, onclick: () => this.focusRun(run.id) }));
    const { tone, parts, watcher } = answer(focus, focus.line, focus.details.get(bestSeq), this.now(), also);
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
      this.details(focus, [seq, ...best]).then(
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
      if (seqs.length) this.details(run, seqs).catch(() => null);
    }
  }

  drawBanners(focus) {
    const notes = [];
    const say = (key, ...content) => notes.push(el('p.banner', { 'data-banner': key }, ...content));
    if (this.lost) say('lost', `${this.lost.text}; the data shown is from ${ago(Date.now() / 1000 - this.lost.since)}.`);
    for (const run of this.shownRuns()) {
      if (run.problem) say('problem', `${short(run.name, 80)}: ${run.problem}`);
      if (!run.points) continue;
      const written = run.state?.n_written ?? 0;
      if (run.points.rows < written) {
        say(
          'incomplete',
          `${short(run.name, 80)}: ${count(run.points.rows)} of ${count(written)} checkpoints loaded. `,
          ...(run.stuck ? ['TensorBoard keeps only a sample; start it with ', el('code', { text: '--samples_per_plugin=dse=0' }), '.'] : ['Still loading…']),
        );
      }
      if (run.points.header.skipped) say('skipped', `${short(run.name, 80)}: ${count(run.points.header.skipped)} records could not be read and are left out.`);
      if (run.line?.otherSettings) say('settings', `${short(run.name, 80)}: ${count(run.line.otherSettings)} checkpoints measured under earlier settings are not drawn.`);
      if (run.unplaced) say('unplaced', `${short(run.name, 80)}: ${count(run.unplaced)} checkpoints have no place on this axis.`);
    }
    if (focus?.clock?.estimated && (focus.axis === 'epoch' || focus.axis === 'step')) {
      say('estimated', `Epochs and steps are matched by ${focus.clock.source}: positions are estimates.`);
    }
    if (this.apart?.size) {
      const names = [...this.apart].map((id) => short(this.runs.get(id).name, 60)).join(', ');
      say('apart', `Not drawn beside ${short(focus.name, 60)}: ${names}, measured with other settings (${this.difference(focus)}).`);
    }
    this.banners.replaceChildren(...notes.slice(0, 6));
  }

  difference(focus) {
    const settings = (run) => run.state?.settings_by_fingerprint?.[run.state?.settings] ?? {};
    const ours = settings(focus);
    const names = new Set();
    for (const id of this.apart) {
      const theirs = settings(this.runs.get(id));
      for (const name of Object.keys({ ...ours, ...theirs })) {
        if (JSON.stringify(ours[name]) !== JSON.stringify(theirs[name])) names.add(name);
      }
    }
    return [...names].map((name) => name.replaceAll('_', ' ')).join(', ') || 'unknown';
  }

  async drawEmpty() {
    this.skeleton.hidden = true;
    this.main.hidden = true;
    this.alertRoot.hidden = true;
    this.empty.hidden = false;
    this.answer.replaceChildren();
    this.answer.className = 'answer';
    const everything = await api.everyRun().catch(() => []);
    const run = everything.find((name) => name !== '.') ?? (everything.length ? '' : 'RUN');
    const folder = [this.logdir.replace(/\/+$/, ''), run].filter(Boolean).join('/');
    const quoted = /^[\w@%+=:,./~-]+$/.test(folder) ? folder : `'${folder.replaceAll("'", "'\\''")}'`;
    const command = `dse-monitor watch ${quoted} --images IMAGES`;
    this.empty.replaceChildren(
      el('h2', { text: 'No checkpoint has been measured here yet' }),
      el('p', {}, 'Start the watcher beside a training run; its curve appears here with the first checkpoint.'),
      el('p.command', {}, el('code', { text: command }), copyButton(command)),
      el('p.soft', {}, 'IMAGES is a folder of a few thousand images without labels. This page looks every ten seconds.'),
    );
    document.body.dataset.ready = '1';
  }

  /** For tests: what is on the page, as plain data. */
  summary() {
    return {
      runs: [...this.runs.values()].map((run) => ({
        id: run.id,
        name: run.name,
        rows: run.points?.rows ?? null,
        line: run.line ? { axis: run.line.axis, lambda: run.line.lambda, best: run.line.best, candidates: run.line.candidates, length: run.line.rows.length } : null,
        lossTag: run.lossTag ?? null,
        lossRows: run.loss?.rows ?? null,
        alerts: run.alerts?.length ?? null,
      })),
      drawn: (this.drawn ?? []).map((run) => run.id),
      focus: this.view.focus,
      view: { ...this.view, shown: [...(this.view.shown ?? [])], panels: [...this.view.panels] },
      panels: this.charts.plots.map((plot) => ({ key: plot.panel.key, rows: plot.u.data[0].length, x: [plot.u.scales.x.min, plot.u.scales.x.max] })),
      marks: this.charts.scene
        ? Object.fromEntries(Object.entries(this.charts.scene.marks).map(([key, value]) => [key, Array.isArray(value) ? value.length : value]))
        : null,
      timings: this.timings,
    };
  }
}

const emptyMarks = () => ({ best: [], candidates: [], alerts: [], spans: [], failed: [], resumed: [], superseded: [], estimated: [], chosen: null });

export async function start(body) {
  const app = new App(body);
  window.__dse = { app, summary: () => app.summary(), series: { adaptiveLambda, candidates, lineOf } };
  await app.start();
}
