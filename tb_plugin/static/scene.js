/** From runs and choices to what the charts draw: panels with lines, and marks. Pure; the page's state is in app.js. */

import { causeText, confirmed } from './alerts.js';
import { isDark, runColour } from './host.js';
import { clocks, lastNotAbove, positions, scalarPositions, startOf } from './axes.js';
import { lineOf, orderOf, placeOf, resumes, separabilityOf } from './series.js';

const DASHES = { solid: undefined, dashed: [6, 4], dotted: [2, 3], mixed: [8, 3, 2, 3] };

/** Panels that can be switched on, in their order from top to bottom. */
export const PANELS = [
  { key: 'separability', title: 'Separability', explanation: 'M_inter less the mean of the two radii: how far apart the clusters are, less how wide', on: true },
  { key: 'm_dim', title: 'M_dim', explanation: 'Effective rank of the tokens over its bound: share of the available directions in use', on: true },
  { key: 'why', title: 'Change since the best, by part', explanation: 'The parts add up to the change of DSE since the best checkpoint', on: false },
  { key: 'm_inter', title: 'M_inter', explanation: 'Distance of a token to the nearest centroid other than its own', on: false },
  { key: 'm_intra_image', title: 'M_intra, image', explanation: 'Cluster radius inside single images; smaller is better', on: false },
  { key: 'm_intra_batch', title: 'M_intra, batch', explanation: 'Cluster radius inside groups of images; smaller is better', on: false },
  { key: 'loss', title: 'Training loss', explanation: 'A scalar that the trainer logged', on: true },
];

export const colourOf = (run) => run.colour ?? runColour(run.index);

/** A colour with an opacity, as text. */
function faint(colour, opacity) {
  const value = /^#([0-9a-f]{6})$/i.exec(colour);
  if (!value) return 'transparent';
  const parts = [0, 2, 4].map((i) => parseInt(value[1].slice(i, i + 2), 16));
  return `rgba(${parts.join(', ')}, ${opacity})`;
}

/**
 * Derive a run's line, clocks and positions for a lambda and an axis; kept until one of them changes.
 * @param {Object} run - with points, loss, epochScalar
 * @param {?number} lambda
 * @param {?string} axis - null for the run's own
 */
export function prepare(run, lambda, axis) {
  const key = [run.points.header.version, run.order.header.version, lambda, axis, run.lossVersion].join('|');
  if (run.prepared === key) return;
  run.prepared = key;
  run.separability = separabilityOf(run.points);
  run.line = lineOf(run.points, orderOf(run.points, run.order), lambda);
  const { line, points } = run;
  const c = points.columns;
  run.start = startOf(points, line.rows, run.loss);
  run.clock = clocks(points, line.rows, run.loss, run.epochScalar);
  run.axis = axis ?? line.axis;
  const gaps = [];
  for (let row = 0; row < points.rows; row++) {
    const measured = Number.isFinite(run.separability[row]) && Number.isFinite(c.m_dim[row]);
    if (c.status[row] === 0 && !measured) gaps.push(row);
  }
  const rows = [...line.rows, ...gaps];
  const { x, estimated } = positions(points, rows, run.axis, run.clock, run.start, line);
  run.x = x.slice(0, line.rows.length);
  run.estimated = estimated;
  const order = rows.map((_, i) => i).filter((i) => Number.isFinite(x[i]));
  order.sort((a, b) => x[a] - x[b]);
  run.drawn = { x: Float64Array.from(order, (i) => x[i]), index: order.map((i) => (i < line.rows.length ? i : -1)) };
  run.seqs = run.drawn.index.map((i) => (i < 0 ? null : c.seq[line.rows[i]]));
  run.unplaced = line.rows.length - run.drawn.index.filter((i) => i >= 0).length;
  run.rowOfSeq = new Map(Array.from(c.seq, (seq, row) => [seq, row]));
  run.indexOfRow = line.index;
  run.failed = failures(run);
}

/** Checkpoints that could not be measured, unless they were later; placed by time where nothing better is known. */
function failures(run) {
  const { points, line } = run;
  const c = points.columns;
  const last = new Map();
  for (let row = 0; row < points.rows; row++) last.set(c.file[row], row);
  const rows = [...last.values()].filter((row) => c.status[row] !== 0);
  const { x } = positions(points, rows, run.axis, run.clock, run.start, line);
  const byTime = line.rows.map((row, i) => [c.mtime[row], run.x[i]]).filter(([t, p]) => Number.isFinite(t) && Number.isFinite(p));
  byTime.sort((a, b) => a[0] - b[0]);
  const times = byTime.map(([t]) => t);
  return rows
    .map((row, i) => {
      let at = x[i];
      if (!Number.isFinite(at) && times.length) {
        const k = lastNotAbove(times, c.mtime[row]);
        const next = Math.min(k + 1, times.length - 1);
        at = k < 0 ? byTime[0][1] : (byTime[k][1] + byTime[next][1]) / 2;
      }
      return { row, seq: c.seq[row], status: c.status[row], x: at };
    })
    .filter((item) => Number.isFinite(item.x));
}

/** Position on the drawn axis of a value on an alert's own axis; NaN if it cannot be told. */
export function translate(run, axis, value) {
  const { line, points } = run;
  if (!Number.isFinite(value) || !line.rows.length) return NaN;
  if (axis === run.axis) return value;
  const own = line.rows.map((row, i) => (axis === line.axis ? line.x[i] : axis === 'order' ? i + 1 : points.columns[axis]?.[row] ?? NaN));
  let best = -1;
  own.forEach((at, i) => {
    if (Number.isFinite(at) && Number.isFinite(run.x[i]) && (best < 0 || Math.abs(at - value) < Math.abs(own[best] - value))) best = i;
  });
  return best < 0 ? NaN : run.x[best];
}

/**
 * @param {Array} runs - prepared runs to draw, the one in focus among them
 * @param {Object} view - zoom, panels (Set of keys), logLoss, chosen, lambda, companionNames; dseTools and lossTools are
 *   elements beside the titles of those panels
 */
export function buildScene(runs, focus, view) {
  const panels = [{ ...dsePanel(runs, focus), tools: view.dseTools }];
  for (const { key, title, explanation } of PANELS) {
    if (!view.panels.has(key)) continue;
    if (key === 'loss') panels.push(lossPanel(runs, focus, view, title, explanation));
    else if (key === 'why') panels.push(whyPanel(focus, title, explanation));
    else panels.push(partPanel(runs, focus, key, title, explanation));
  }
  for (const name of view.companionNames) {
    if (view.panels.has(`companion:${name}`)) panels.push(companionPanel(runs, focus, name));
  }
  const xs = panels.flatMap((panel) => panel.lines.map((line) => [line.x[0], line.x[line.x.length - 1]])).flat();
  for (const run of runs) xs.push(...run.failed.map((item) => item.x));
  const finite = xs.filter(Number.isFinite);
  const low = Math.min(...finite);
  const high = Math.max(...finite);
  const pad = (high - low) * 0.015 || Math.abs(high) * 0.02 || 1;
  const range = finite.length ? [low - pad, high + pad] : [0, 1];
  return { axis: focus.axis, zoom: view.zoom, range, panels, marks: marksOf(runs, focus, view) };
}

function lineFrom(run, focus, key, values, error, facts = {}) {
  const { index, x } = run.drawn;
  const pick = (array) => Float64Array.from(index, (i) => (i < 0 ? NaN : array[i]));
  const own = run === focus;
  return {
    key: `${run.id}/${key}`,
    label: run.name,
    run: run.id,
    focus: own,
    x,
    y: pick(values),
    error: error ? pick(error) : null,
    seqs: run.seqs,
    width: own ? 2 : 1.25,
    colour: () => faint(colourOf(run), own ? 1 : 0.8),
    band: () => faint(colourOf(run), isDark() ? 0.28 : 0.18),
    ...facts,
  };
}

function dsePanel(runs, focus) {
  const lambdas = runs.map((run) => run.line.lambda);
  const same = lambdas.every((value) => value === lambdas[0]);
  const text = (value) => value.toFixed(value < 10 ? 2 : 1);
  const note = same
    ? `λ ${text(lambdas[0])}, band ± 1 standard error`
    : `each run at its own λ (${text(Math.min(...lambdas))} to ${text(Math.max(...lambdas))}): compare shapes, not levels`;
  return {
    key: 'dse',
    title: 'DSE',
    explanation: 'Dense representation Structure Estimator: separability + λ · M_dim. Higher is better.',
    note,
    weight: 2.2,
    decimals: 3,
    marked: true,
    dots: true,
    lines: runs.map((run) => lineFrom(run, focus, 'dse', run.line.dse, run.line.se)),
  };
}

function columnOf(run, name) {
  return Float64Array.from(run.line.rows, (row) => run.points.columns[name][row]);
}

function partPanel(runs, focus, key, title, explanation) {
  return {
    key,
    title,
    explanation,
    weight: 1,
    decimals: 3,
    dots: true,
    lines: runs.map((run) =>
      lineFrom(run, focus, key, key === 'separability' ? run.line.separability : columnOf(run, key), columnOf(run, `${key}_se`), {
        dash: key === 'm_dim' ? DASHES.dashed : undefined,
      }),
    ),
  };
}

/** What of the change of DSE since the best checkpoint comes from where; the run in focus only. */
function whyPanel(run, title, explanation) {
  const { line } = run;
  const best = line.best;
  const parts = [
    ['M_inter', 'm_inter', 1, 'solid'],
    ['radius in images', 'm_intra_image', -0.5, 'mixed'],
    ['radius in batches', 'm_intra_batch', -0.5, 'dotted'],
    ['λ · M_dim', 'm_dim', line.lambda, 'dashed'],
  ];
  return {
    key: 'why',
    title,
    explanation,
    note: `${run.name}: ${parts.map(([label, , , dash]) => `${{ solid: '—', mixed: '–·–', dotted: '···', dashed: '- -' }[dash]} ${label}`).join('   ')}`,
    weight: 1.3,
    decimals: 3,
    zero: 0,
    lines:
      best < 0
        ? []
        : parts.map(([label, name, factor, dash]) => {
            const values = columnOf(run, name);
            const changes = values.map((value) => factor * (value - values[best]));
            return lineFrom(run, run, `why/${name}`, changes, null, { label, dash: DASHES[dash], width: 1.5 });
          }),
  };
}

function lossPanel(runs, focus, view, title, explanation) {
  const lines = [];
  for (const run of runs) {
    if (!run.loss?.rows) continue;
    const all = scalarPositions(run.loss, run.axis, run.clock, run.start);
    const order = Array.from(all.keys()).filter((i) => Number.isFinite(all[i]));
    order.sort((a, b) => all[a] - all[b]);
    const own = run === focus;
    lines.push({
      key: `${run.id}/loss`,
      label: run.name,
      run: run.id,
      focus: own,
      x: Float64Array.from(order, (i) => all[i]),
      y: Float64Array.from(order, (i) => (view.logLoss && run.loss.columns.value[i] <= 0 ? NaN : run.loss.columns.value[i])),
      error: null,
      seqs: null,
      width: own ? 1.5 : 1,
      colour: () => faint(colourOf(run), own ? 1 : 0.8),
    });
  }
  const placed = lines.some((line) => line.x.length);
  let note = '';
  if (focus.loss === undefined) note = 'reading…';
  else if (!focus.loss?.rows) note = focus.scalars?.length ? `no training loss among the scalars of ${focus.name}: choose one` : `no scalars found beside ${focus.name}`;
  else if (!placed) note = 'its steps cannot be placed on this axis: choose step or wall time';
  return { key: 'loss', title, explanation, note, weight: 1, decimals: 4, log: view.logLoss, tools: view.lossTools, lines: placed ? lines : [] };
}

const probes = {
  miou_linear: 'mIoU of a linear probe on labelled images, mean over splits (dse-monitor probe)',
  miou_knn: 'mIoU of a nearest-neighbour probe on labelled images, mean over splits (dse-monitor probe)',
};

function companionPanel(runs, focus, name) {
  const lines = runs
    .filter((run) => run.companions?.columns[name])
    .map((run) => {
      const values = new Map(Array.from(run.companions.columns.seq, (seq, i) => [seq, run.companions.columns[name][i]]));
      const own = Float64Array.from(run.line.rows, (row) => values.get(run.points.columns.seq[row]) ?? NaN);
      return lineFrom(run, focus, `companion/${name}`, own, null);
    });
  return { key: `companion:${name}`, title: name, explanation: probes[name] ?? `${name} of the same tokens; not part of DSE`, note: probes[name] ? 'with labels, to compare DSE with' : 'beside DSE, not part of it', weight: 1, decimals: 3, dots: true, lines };
}

/** A chart without marks. */
export const noMarks = () => ({ best: [], candidates: [], alerts: [], spans: [], failed: [], resumed: [], superseded: [], estimated: [], chosen: null });

function marksOf(runs, focus, view) {
  const marks = noMarks();
  const where = (run, index) => placeOf(run.points, run.line, index);
  for (const run of runs) {
    const { line } = run;
    const own = run === focus;
    if (line.best >= 0 && Number.isFinite(run.x[line.best])) {
      marks.best.push({ x: run.x[line.best], y: line.dse[line.best], focus: own, told: false, text: `best of ${run.name}: ${where(run, line.best)}` });
    }
    for (const item of run.failed) marks.failed.push({ ...item, run: run.id, text: () => failureText(run, item) });
    const changes = confirmed((run.alerts ?? []).filter((alert) => alert.kind === 'degradation' || alert.kind === 'non-finite'));
    for (const alert of changes) {
      const current = alert === changes[changes.length - 1];
      if (alert.status !== 'firing' && !(alert.status === 'pending' && current)) continue;
      const x = translate(run, alert.axis, alert[alert.axis] ?? alert.since);
      const index = nearest(run.x, x);
      if (index >= 0) {
        marks.alerts.push({ x, y: line.dse[index], firing: alert.status === 'firing', text: [`${run.name}: ${alert.status}`, causeText(alert)].filter(Boolean).join(', ') });
      }
    }
  }
  {
    const { line } = focus;
    line.candidates.slice(1).forEach((index, i) => {
      if (Number.isFinite(focus.x[index])) marks.candidates.push({ x: focus.x[index], y: line.dse[index], rank: i + 2, text: `candidate ${i + 2}: ${where(focus, index)}` });
    });
    const told = focus.rowOfSeq.get(focus.state?.best?.seq);
    const toldIndex = focus.indexOfRow.get(told);
    if (view.lambda !== null && toldIndex !== undefined && toldIndex !== line.best) {
      marks.best.push({ x: focus.x[toldIndex], y: line.dse[toldIndex], focus: false, told: true, text: `best at the adaptive λ: ${where(focus, toldIndex)}` });
    }
    marks.spans = spans(focus);
    marks.resumed = resumes(focus.points, line).map((index) => focus.x[index]).filter(Number.isFinite);
    const byTime = focus.axis === 'wall' || focus.axis === 'relative';
    for (const [row, { why, by }] of line.aside) {
      if (why !== 'replaced') continue; // where weights are merged, the same stand there already
      const x = byTime ? positions(focus.points, [row], focus.axis, focus.clock, focus.start).x[0] : focus.x[line.index.get(by)];
      if (Number.isFinite(x)) marks.superseded.push({ x, y: focus.separability[row] + line.lambda * focus.points.columns.m_dim[row] });
    }
    focus.x.forEach((x, i) => {
      if (focus.estimated[i] && Number.isFinite(x)) marks.estimated.push({ x, y: line.dse[i], colour: () => colourOf(focus) });
    });

    const row = focus.rowOfSeq.get(view.chosen);
    const index = focus.indexOfRow.get(row);
    const failed = focus.failed.find((item) => item.seq === view.chosen);
    if (index !== undefined && Number.isFinite(focus.x[index])) marks.chosen = { x: focus.x[index], y: line.dse[index] };
    else if (failed) marks.chosen = { x: failed.x, y: NaN };
  }
  return marks;
}

function failureText(run, item) {
  const reason = run.details?.get(item.seq)?.reason;
  return `${item.status === 2 ? 'invalid' : 'failed'}${reason ? `: ${reason}` : ''}`;
}

function nearest(xs, x) {
  let best = -1;
  xs.forEach((at, i) => {
    if (Number.isFinite(at) && (best < 0 || Math.abs(at - x) < Math.abs(xs[best] - x))) best = i;
  });
  return Number.isFinite(x) ? best : -1;
}

/** Stretches of a run in which a degradation alert was firing. */
function spans(run) {
  const found = [];
  let open = null;
  for (const alert of run.alerts ?? []) {
    if (alert.kind !== 'degradation') continue;
    if (alert.status === 'firing' && !open) {
      open = { from: translate(run, alert.axis, alert.since), to: Infinity };
      if (Number.isFinite(open.from)) found.push(open);
    } else if (alert.status === 'resolved' && open) {
      open.to = translate(run, alert.axis, alert[alert.axis] ?? alert.since);
      open = null;
    }
  }
  return found;
}
