/**
 * Where checkpoints and the training's scalars stand on one x axis.
 *
 * A checkpoint knows its epoch, its step, both or neither; a scalar knows a step whose unit the trainer chose, and a
 * time. In this order: what was recorded; a logged epoch scalar; the times of both, if a straight line through the
 * pairs they give fits within one percent. A position that was estimated is marked as such.
 */

export const AXES = ['epoch', 'step', 'order', 'wall', 'relative'];
export const AXIS_NAMES = { epoch: 'Epoch', step: 'Step', order: 'Order', wall: 'Wall time', relative: 'Hours' };
const ACCEPTED = 0.01; // residual of an estimated line, as a share of its range
const FEWEST_PAIRS = 3;

/** Index of the last element not above a value, in ascending numbers; -1 if there is none. */
export function lastNotAbove(ascending, value) {
  let [low, high] = [0, ascending.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ascending[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** Straight pieces through pairs ascending in x, continued at both ends with the slope found there. */
function interpolate(xs, ys, x) {
  if (xs.length === 0) return NaN;
  if (xs.length === 1) return xs[0] === 0 ? NaN : (ys[0] / xs[0]) * x;
  const i = Math.min(Math.max(lastNotAbove(xs, x), 0), xs.length - 2);
  return ys[i] + ((ys[i + 1] - ys[i]) / (xs[i + 1] - xs[i])) * (x - xs[i]);
}

/** Pairs sorted by x, one of each x, with y not falling. */
function monotone(pairs) {
  const sorted = pairs.filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y)).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const xs = [];
  const ys = [];
  for (const [x, y] of sorted) {
    if (xs.length && (x === xs[xs.length - 1] || y < ys[ys.length - 1])) continue;
    xs.push(x);
    ys.push(y);
  }
  return [xs, ys];
}

/** The line y = a x + b through pairs by least squares; null unless it rises and every pair is within one percent. */
export function fitLine(pairs) {
  const n = pairs.length;
  if (n < FEWEST_PAIRS) return null;
  const mean = (k) => pairs.reduce((sum, pair) => sum + pair[k], 0) / n;
  const [mx, my] = [mean(0), mean(1)];
  let xx = 0;
  let xy = 0;
  for (const [x, y] of pairs) {
    xx += (x - mx) ** 2;
    xy += (x - mx) * (y - my);
  }
  const a = xy / xx;
  if (!(a > 0)) return null;
  const b = my - a * mx;
  const ys = pairs.map((pair) => pair[1]);
  const range = Math.max(...ys) - Math.min(...ys);
  const worst = Math.max(...pairs.map(([x, y]) => Math.abs(y - a * x - b)));
  return worst <= ACCEPTED * range ? { a, b } : null;
}

/** Of the rows of a run, pairs (what is known of the checkpoint, step of the last scalar written before it). */
function pairsByTime(points, rows, known, scalar) {
  const walls = Float64Array.from(scalar.columns.wall_time);
  const order = walls.every((wall, i) => i === 0 || wall >= walls[i - 1]);
  if (!order || !scalar.rows) return [];
  const pairs = [];
  for (const row of rows) {
    const i = lastNotAbove(walls, points.columns.mtime[row]);
    if (i >= 0 && Number.isFinite(known[row]) && i < scalar.rows - 1) pairs.push([known[row], scalar.columns.step[i]]);
  }
  return pairs;
}

/**
 * How a run's two clocks translate.
 * @param {Object} points - columns of the run
 * @param {number[]} rows - rows of its line
 * @param {?Object} loss - columns step, wall_time, value
 * @param {?Object} epochs - the same of a logged epoch
 * @returns {{toEpoch, toStep, source: string, estimated: boolean}} functions of a step and of an epoch; NaN if unknown
 */
export function clocks(points, rows, loss, epochs) {
  const c = points.columns;
  const unknown = () => NaN;
  if (epochs && epochs.rows > 1) {
    const pairs = Array.from(epochs.columns.step, (step, i) => [step, epochs.columns.value[i]]);
    const [steps, values] = monotone(pairs);
    if (steps.length > 1 && values[values.length - 1] > values[0]) {
      return {
        toEpoch: (step) => interpolate(steps, values, step),
        toStep: (epoch) => {
          const i = lastNotAbove(values, epoch);
          return i < 0 ? steps[0] : steps[i];
        },
        source: 'the logged epoch',
        estimated: false,
      };
    }
  }
  const both = rows.filter((row) => Number.isFinite(c.step[row]) && Number.isFinite(c.epoch[row]));
  if (loss && loss.rows) {
    // The steps of a scalar may be counted differently from those in the files (images, thousandths of an epoch).
    const byStep = fitLine(pairsByTime(points, rows, c.step, loss));
    const same = !byStep || (Math.abs(byStep.a - 1) < 0.1 && both.length > 0);
    if (both.length > 1 && same) return { ...translate(both, c), source: 'the checkpoints', estimated: false };
    const line = fitLine(pairsByTime(points, rows, c.epoch, loss));
    if (line) {
      return {
        toEpoch: (step) => (step - line.b) / line.a,
        toStep: (epoch) => line.a * epoch + line.b,
        source: 'the times of files and scalars',
        estimated: true,
      };
    }
  }
  if (both.length > 1) return { ...translate(both, c), source: 'the checkpoints', estimated: false };
  return { toEpoch: unknown, toStep: unknown, source: '', estimated: false };
}

function translate(rows, c) {
  const [steps, epochs] = monotone(rows.map((row) => [c.step[row], c.epoch[row]]));
  const [epochs2, steps2] = monotone(rows.map((row) => [c.epoch[row], c.step[row]]));
  return {
    toEpoch: (step) => interpolate(steps, epochs, step),
    toStep: (epoch) => interpolate(epochs2, steps2, epoch),
  };
}

/**
 * Positions of rows on an axis. Checkpoints of a line stand where its order puts them: on its own axis at its positions, and
 * among epochs at their fractions where those are known, so that several of one epoch do not fall together.
 * @param {?Object} line - rows, axis, x, epochs, index; see series.js
 * @returns {{x: Float64Array, estimated: Uint8Array}} one per row
 */
export function positions(points, rows, axis, clock, start, line = null) {
  const c = points.columns;
  const estimated = new Uint8Array(rows.length);
  const x = Float64Array.from(rows, (row, i) => {
    const at = line?.index.get(row);
    if (axis === 'order') return line ? (at ?? NaN) + 1 : i + 1;
    if (axis === line?.axis && at !== undefined) return line.x[at];
    if (axis === 'epoch' && Number.isFinite(line?.epochs[at])) {
      estimated[i] = line.estimated && line.epochs[at] !== c.epoch[row] ? 1 : 0;
      return line.epochs[at];
    }
    if (axis === 'wall' || axis === 'relative') {
      const time = Number.isFinite(c.mtime[row]) ? c.mtime[row] : c.wall_time[row];
      return axis === 'wall' ? time : (time - start) / 3600;
    }
    if (Number.isFinite(c[axis][row])) return c[axis][row];
    estimated[i] = 1;
    return axis === 'step' ? clock.toStep(c.epoch[row]) : clock.toEpoch(c.step[row]);
  });
  return { x, estimated };
}

/** Positions of a scalar's events on an axis. */
export function scalarPositions(scalar, axis, clock, start) {
  const c = scalar.columns;
  if (axis === 'wall') return c.wall_time;
  if (axis === 'relative') return c.wall_time.map((time) => (time - start) / 3600);
  if (axis === 'step') return c.step;
  return c.step.map((step) => clock.toEpoch(step));
}

/** When a run began: its first scalar or its first checkpoint, seconds since 1970. */
export function startOf(points, rows, loss) {
  const times = rows.map((row) => points.columns.mtime[row]).filter(Number.isFinite);
  if (loss && loss.rows) times.push(loss.columns.wall_time[0]);
  return times.reduce((least, time) => Math.min(least, time), Infinity);
}
