/** What is known of the runs, and how more of it is read: only what is new, and never what is not shown. */

import * as api from './api.js';

export class Store {
  constructor() {
    this.runs = new Map(); // by name of the run that holds the data
    this.lost = null; // since when the server does not answer, and what it said
    this.logdir = '';
    this.timings = {};
  }

  /** Server time, seconds since 1970. */
  now() {
    return Date.now() / 1000 + (this.offset ?? 0);
  }

  /** Ask which runs there are; false where nobody answers. */
  async loadRuns() {
    try {
      const reply = await api.runs();
      this.lost = null;
      this.offset = reply.now - Date.now() / 1000;
      this.logdir = reply.logdir;
      this.takeRuns(reply.runs);
      return true;
    } catch (error) {
      this.lost ??= { since: Date.now() / 1000, text: error.message };
      return false;
    }
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

  /** Points and alerts of a run, if its state says that there is something new, or something is still missing. */
  async loadRun(run) {
    const version = [run.state?.last_seq, run.state?.n_written, run.state?.n_alerts].join('-');
    const missing = run.points && run.points.rows < (run.state?.n_written ?? 0);
    const whole = run.points?.header.version === run.order?.header.version; // a checkpoint may come between two replies
    if (run.version === version && !missing && run.points && whole) return;
    const started = performance.now();
    const before = run.points?.rows ?? 0;
    try {
      const [points, order, alerts] = await Promise.all([
        api.points(run.id, run.points),
        api.line(run.id),
        run.state?.n_alerts === 0 ? [] : api.alerts(run.id),
      ]);
      this.timings.points = performance.now() - started;
      run.points = points;
      run.order = order;
      for (const [seq, meta] of run.details) if (meta === null) run.details.delete(seq); // may be there by now
      run.alerts = alerts.filter((alert) => alert.kind !== 'test');
      run.stuck = missing && points.rows === before;
      run.version = version;
      run.problem = null;
    } catch (error) {
      run.problem = error.message;
    }
  }

  /** Scalars that may be drawn beside a run, and the one of this tag, or else the likeliest training loss. */
  async loadScalars(run, tag) {
    try {
      run.scalars = await api.scalars(run.id);
      const chosen = run.scalars.find((item) => item.tag === tag) ?? run.scalars.find((item) => item.score >= 50);
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

  /** Names of the companion metrics of a run, told by one checkpoint; empty once they were told. */
  async companionNames(run) {
    if (!run?.points?.rows || run.sample) return [];
    run.sample = true;
    const c = run.points.columns;
    const scored = Array.from(c.seq).filter((_, row) => c.status[row] === 0);
    const found = await this.details(run, scored.slice(-1)).catch(() => new Map());
    return [...found.values()].flatMap((meta) => Object.keys(meta?.companions ?? {}));
  }

  async loadCompanions(run) {
    if (run.companionsVersion === run.version || !run.points) return;
    run.companions = await api.companions(run.id).catch(() => null);
    run.companionsVersion = run.version;
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
}
