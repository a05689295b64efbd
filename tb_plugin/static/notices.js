/** What the page says instead of staying silent: incomplete data, estimates, other settings, nothing to show. */

import { everyRun } from './api.js';
import { ago, copyButton, count, el, short } from './dom.js';

const SHOWN = 6; // banners at once

/**
 * @param {{focus: ?Object, shown: Object[], apart: Object[], lost: ?Object}} page - `apart` are the runs shown whose settings
 *   differ from those of the run in focus
 * @returns {HTMLElement[]}
 */
export function banners({ focus, shown, apart, lost }) {
  const notes = [];
  const say = (key, ...content) => notes.push(el('p.banner', { 'data-banner': key }, ...content));
  if (lost) say('lost', `${lost.text}; the data shown is from ${ago(Date.now() / 1000 - lost.since)}.`);
  for (const run of shown) {
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
    if (run === focus && run.line?.notes.length) say('order', `${short(run.name, 80)}: ${run.line.notes.map((note) => short(note, 300)).join('. ')}.`);
    if (run.unplaced) say('unplaced', `${short(run.name, 80)}: ${count(run.unplaced)} checkpoints have no place on this axis.`);
  }
  if (focus?.clock?.estimated && (focus.axis === 'epoch' || focus.axis === 'step')) {
    say('estimated', `Epochs and steps are matched by ${focus.clock.source}: positions are estimates.`);
  }
  if (focus?.line?.estimated && focus.axis === 'epoch' && focus.line.axis !== 'epoch') {
    say('fractions', 'No file says how many steps an epoch has: positions within an epoch are estimates.');
  }
  if (apart.length) {
    const names = apart.map((run) => short(run.name, 60)).join(', ');
    say('apart', `Not drawn beside ${short(focus.name, 60)}: ${names}, measured with other settings (${difference(focus, apart)}).`);
  }
  return notes.slice(0, SHOWN);
}

/** Names of the settings in which some runs differ from another. */
function difference(focus, apart) {
  const settings = (run) => run.state?.settings_by_fingerprint?.[run.state?.settings] ?? {};
  const ours = settings(focus);
  const names = new Set();
  for (const run of apart) {
    const theirs = settings(run);
    for (const name of Object.keys({ ...ours, ...theirs })) {
      if (JSON.stringify(ours[name]) !== JSON.stringify(theirs[name])) names.add(name);
    }
  }
  return [...names].map((name) => name.replaceAll('_', ' ')).join(', ') || 'unknown';
}

/** How to start, where there is no data. */
export async function emptyPage(logdir) {
  const everything = await everyRun().catch(() => []);
  const run = everything.find((name) => name !== '.') ?? (everything.length ? '' : 'RUN');
  const folder = [logdir.replace(/\/+$/, ''), run].filter(Boolean).join('/');
  const quoted = /^[\w@%+=:,./~-]+$/.test(folder) ? folder : `'${folder.replaceAll("'", "'\\''")}'`;
  const command = `dse-monitor watch ${quoted} --images IMAGES`;
  return [
    el('h2', { text: 'No checkpoint has been measured here yet' }),
    el('p', {}, 'Start the watcher beside a training run; its curve appears here with the first checkpoint.'),
    el('p.command', {}, el('code', { text: command }), copyButton(command)),
    el('p.soft', {}, 'IMAGES is a folder of a few thousand images without labels. This page looks every ten seconds.'),
  ];
}
