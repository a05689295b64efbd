/**
 * A run's evaluations as one line: the same rules as dse_monitor/runs/series.py, so that a lambda can be tried here.
 * Points are columns sorted by sequence number; see POINT_COLUMNS in dse_monitor/runs/record.py.
 */

const NEIGHBOURS = 2; // checkpoints on either side a candidate must not fall below
const CANDIDATES = 3;
const FEWEST_FOR_LAMBDA = 3;
const ROUNDING = 1e-12; // a deviation below this share of the values' size is the rounding of equal numbers

function spread(values) {
  let sum = 0;
  let largest = 0;
  for (const value of values) {
    sum += value;
    largest = Math.max(largest, Math.abs(value));
  }
  const mean = sum / values.length;
  let squares = 0;
  for (const value of values) squares += (value - mean) ** 2;
  const deviation = Math.sqrt(squares / values.length);
  return deviation > ROUNDING * largest ? deviation : 0;
}

/** Std(separability) / Std(m_dim); 1 with fewer than three values or where m_dim does not vary. */
export function adaptiveLambda(separability, mDim) {
  const s = [];
  const d = [];
  for (let i = 0; i < separability.length; i++) {
    if (Number.isFinite(separability[i]) && Number.isFinite(mDim[i])) {
      s.push(separability[i]);
      d.push(mDim[i]);
    }
  }
  const dimSpread = s.length < FEWEST_FOR_LAMBDA ? 0 : spread(d);
  return dimSpread === 0 ? 1 : spread(s) / dimSpread;
}

/** Indices of up to three local maxima (no higher neighbour within two positions), best first. */
export function candidates(scores) {
  const finite = (i) => i >= 0 && i < scores.length && Number.isFinite(scores[i]);
  const found = [];
  for (let i = 0; i < scores.length; i++) {
    if (!finite(i)) continue;
    let highest = true;
    for (let k = i - NEIGHBOURS; k <= i + NEIGHBOURS; k++) if (finite(k) && scores[k] > scores[i]) highest = false;
    if (highest) found.push(i);
  }
  return found.sort((a, b) => scores[b] - scores[a] || a - b).slice(0, CANDIDATES);
}

/** m_inter less the mean of the two radii, for every row. */
export function separabilityOf(points) {
  const c = points.columns;
  return Float64Array.from({ length: points.rows }, (_, i) => c.m_inter[i] - (c.m_intra_image[i] + c.m_intra_batch[i]) / 2);
}

/**
 * Rows of the comparable scored evaluations in training order, one per position.
 * @returns {{rows: number[], axis: string, settings: number, superseded: number[], otherSettings: number}}
 */
export function trainingOrder(points, separability) {
  const c = points.columns;
  const key = (row) => (Number.isFinite(c.settings[row]) ? c.settings[row] : -1);
  let measured = [];
  for (let i = 0; i < points.rows; i++) {
    if (c.status[i] === 0 && Number.isFinite(separability[i]) && Number.isFinite(c.m_dim[i])) measured.push(i);
  }
  if (!measured.length) return { rows: [], axis: 'epoch', settings: -1, superseded: [], otherSettings: 0 };
  const settings = key(measured[measured.length - 1]);
  const every = measured.length;
  measured = measured.filter((row) => key(row) === settings);
  const otherSettings = every - measured.length;
  const all = (name) => measured.every((row) => Number.isFinite(c[name][row]));
  const axis = all('epoch') ? 'epoch' : all('step') ? 'step' : 'order';
  if (axis === 'order') return { rows: measured, axis, settings, superseded: [], otherSettings };
  const newest = new Map();
  for (const row of measured) newest.set(c[axis][row], row);
  const rows = [...newest.values()].sort((a, b) => c[axis][a] - c[axis][b]);
  const kept = new Set(rows);
  return { rows, axis, settings, superseded: measured.filter((row) => !kept.has(row)), otherSettings };
}

/** Standard error of DSE at a lambda, exact because the covariance is kept; NaN where unknown. */
export function standardError(points, row, lambda) {
  const c = points.columns;
  const variance =
    c.separability_se[row] ** 2 + lambda ** 2 * c.m_dim_se[row] ** 2 + 2 * lambda * c.separability_dim_cov[row];
  return Number.isFinite(variance) ? Math.sqrt(Math.max(variance, 0)) : NaN;
}

/**
 * The line of a run at a lambda (null: the adaptive one).
 * @returns {{rows, axis, settings, superseded, otherSettings, separability, mDim, adaptive, lambda, dse, se, candidates, best}}
 *   `best` is an index into `rows`, or -1.
 */
export function lineOf(points, lambda = null) {
  const every = separabilityOf(points);
  const order = trainingOrder(points, every);
  const separability = Float64Array.from(order.rows, (row) => every[row]);
  const mDim = Float64Array.from(order.rows, (row) => points.columns.m_dim[row]);
  const adaptive = adaptiveLambda(separability, mDim);
  const used = lambda ?? adaptive;
  const dse = separability.map((value, i) => value + used * mDim[i]);
  const se = Float64Array.from(order.rows, (row) => standardError(points, row, used));
  const found = candidates(dse);
  return { ...order, separability, mDim, adaptive, lambda: used, dse, se, candidates: found, best: found[0] ?? -1 };
}

/** Indices into `rows` at which the trainer had gone back: a later file at an earlier position. */
export function resumes(points, line) {
  if (line.axis === 'order') return [];
  const c = points.columns;
  const measured = [...line.rows, ...line.superseded].filter((row) => Number.isFinite(c.mtime[row]));
  measured.sort((a, b) => c.mtime[a] - c.mtime[b] || a - b);
  const index = new Map(line.rows.map((row, i) => [row, i]));
  const found = new Set();
  for (let i = 1; i < measured.length; i++) {
    const [before, now] = [measured[i - 1], measured[i]];
    const back = c[line.axis][now] <= c[line.axis][before] && c.mtime[now] > c.mtime[before];
    if (back && index.has(now)) found.add(index.get(now));
  }
  return [...found].sort((a, b) => a - b);
}
