/** Ranges and labels of axes. */

import { moment, number } from './dom.js';

/** Room above and below the values: uPlot's range of a y axis. */
export function yRange(log) {
  return (_, low, high) => {
    if (!Number.isFinite(low) || !Number.isFinite(high)) return log ? [0.1, 1] : [0, 1];
    if (log) return [low / 1.15, high * 1.15];
    const pad = (high - low) * 0.12 || Math.abs(high) * 0.05 || 0.5;
    return [low - pad, high + pad];
  };
}

/** Tick labels as short as their distance allows. */
export function tickTexts(_, values) {
  const step = values.length > 1 ? Math.abs(values[1] - values[0]) : 1;
  let decimals = 0;
  while (decimals < 6 && Math.abs(step * 10 ** decimals - Math.round(step * 10 ** decimals)) > 1e-6) decimals++;
  return values.map((value) => (value === null ? '' : Math.abs(value) >= 1e4 ? shortNumber(value) : number(value, decimals)));
}

/** Dates for ticks of days and more, else times of day with the date wherever a new day begins. */
export function timeTexts(_, values, __, ___, step) {
  let day = '';
  return values.map((value) => {
    const [date, time] = moment(value).split(' ');
    const shown = date.slice(step >= 86400 * 28 ? 0 : 5, step >= 86400 * 28 ? 7 : 10);
    if (step >= 86400) return shown;
    const text = date === day ? time : `${time}\n${shown}`;
    day = date;
    return text;
  });
}

function shortNumber(value) {
  const power = Math.min(3, Math.floor(Math.log10(Math.abs(value)) / 3));
  const scaled = value / 1000 ** power;
  return `${Number(scaled.toFixed(2))}${['', 'k', 'M', 'G'][power]}`;
}
