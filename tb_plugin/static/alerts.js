/** The list of alerts, and one sentence about a run: is it degrading, since when, why, which checkpoint to take. */

import { ago, copyButton, el, number, short } from './dom.js';
import { runColour } from './host.js';
import { placeAt, placeOf } from './series.js';

const CAUSES = { separability: 'separability', m_dim: 'dimensionality (M_dim)', both: 'separability and dimensionality' };

/** The cause of a drop in words, with its share where one is known. */
export function causeText(alert) {
  const words = CAUSES[alert.cause] ?? '';
  const share = alert.shares?.[alert.cause];
  return words && Number.isFinite(share) ? `${words} (${Math.round(share * 100)} % of the drop)` : words;
}

const KINDS = {
  degradation: 'degraded',
  'non-finite': 'not finite',
  health: 'watcher',
  plateau: 'plateau',
  test: 'test alert',
};

/** What the changes of one alert have in common: its key is RUN/RULE/EPISODE/CHANGE. */
const topicOf = (alert) => String(alert.key).split('/').slice(0, -2).join('/') || alert.kind;

/** Alerts without reminders, and without the pending ones that the next change of the same alert confirmed. */
export function confirmed(alerts) {
  return alerts.filter((alert, i) => {
    if (String(alert.key).split('/').pop().includes('reminder')) return false;
    const next = alerts.slice(i + 1).find((later) => topicOf(later) === topicOf(alert));
    return !(alert.status === 'pending' && next?.status === 'firing');
  });
}

/** One line about an alert of a run. */
export function headline(alert, run) {
  const kind = KINDS[alert.kind] ?? short(alert.kind, 40);
  if (alert.kind !== 'degradation') return `${kind}: ${short(alert.message, 200)}`;
  const parts = [alert.status === 'resolved' ? 'recovered' : alert.status === 'pending' ? 'may be degrading' : kind];
  if (Number.isFinite(alert.since)) parts[0] += ` since ${placeAt(run, alert.axis, alert.since)}`;
  const cause = causeText(alert);
  if (cause && alert.status !== 'resolved') parts.push(cause);
  if (Number.isFinite(alert.drop)) parts.push(`${number(-alert.drop)} against the best when reported`);
  if (Number.isFinite(alert.best_at)) parts.push(`best is ${placeAt(run, alert.axis, alert.best_at)}`);
  return parts.join(' · ');
}

const SHAPES = { firing: '▲', pending: '△', resolved: '✓' };

export class AlertList {
  /**
   * @param {HTMLElement} root
   * @param {{zoom: function(run, alert), choose: function(run, alert)}} actions
   */
  constructor(root, actions) {
    this.root = root;
    this.actions = actions;
    this.open = new Set();
  }

  /** @param {Array<{run, alert}>} items - newest first; `now` in seconds since 1970 */
  draw(items, now) {
    const rows = items.map(({ run, alert }) => this.row(run, alert, now));
    const text = items.length ? '' : 'No alerts in the runs shown.';
    this.root.replaceChildren(
      el('header.rail-head', {}, el('h2', { text: 'Alerts' }), el('span.soft', { text: items.length ? String(items.length) : '' })),
      items.length ? el('ul.alerts', {}, ...rows) : el('p.soft', { text }),
    );
  }

  row(run, alert, now) {
    const key = `${run.id}/${alert.key}/${alert.seq}`;
    const message = el('p.message', { text: alert.message, hidden: !this.open.has(key) });
    const details = el('button.quiet', {
      type: 'button',
      text: 'Details',
      'aria-expanded': String(this.open.has(key)),
      onclick: () => {
        message.hidden = !message.hidden;
        details.setAttribute('aria-expanded', String(!message.hidden));
        if (message.hidden) this.open.delete(key);
        else this.open.add(key);
      },
    });
    return el(
      `li.${['firing', 'pending', 'resolved'].includes(alert.status) ? alert.status : 'unknown'}`,
      {},
      el('span.shape', { text: SHAPES[alert.status] ?? '•', title: short(alert.status, 20) }),
      el('i.swatch', { style: { background: run.colour ?? runColour(run.index) } }),
      el('strong', { text: run.name, title: short(run.name, 300) }),
      el('span.head', { text: headline(alert, run), title: short(alert.message, 300) }),
      el('span.soft.when', { text: ago(now - alert.wall_time) }),
      el('button.quiet', { type: 'button', text: 'Zoom', onclick: () => this.actions.zoom(run, alert) }),
      details,
      message,
    );
  }
}

/** The answer for the run in focus, and the state of its watcher. */
export function answer(run, line, meta, time, others) {
  const { state } = run;
  const alert = state?.alert ?? { status: 'none' };
  const parts = [];
  const name = el('strong.run-name', { text: run.name, title: short(run.name, 300) });
  const best = line.best >= 0 ? bestText(run, line) : '';
  let tone = 'calm';
  if (alert.status === 'firing' || alert.status === 'pending') {
    tone = alert.status === 'firing' ? 'alert' : 'pending';
    const verb = alert.kind === 'degradation' ? (alert.status === 'firing' ? 'is degrading' : 'may be degrading') : `: ${KINDS[alert.kind] ?? short(alert.kind, 40)}`;
    const since = Number.isFinite(alert.since) ? ` since ${placeAt(run, alert.axis, alert.since)}` : '';
    const fallen = alert.kind === 'degradation' ? lossOf(line) : NaN;
    const now = fallen > 0 ? `, now ${number(fallen)} below its best` : '';
    parts.push(el('span.shape', { text: SHAPES[alert.status] }), name, el('span', { text: ` ${verb}${since}${now}.` }));
    const cause = causeText(alert);
    if (cause) parts.push(el('span', { text: `Cause: ${cause}.` }));
    else if (alert.kind !== 'degradation') parts.push(el('span', { text: short(alert.message, 160) }));
  } else if (line.rows.length === 0) {
    parts.push(name, el('span', { text: state?.n_failed ? ` has no scored checkpoint; ${state.n_failed} failed.` : ' has no scored checkpoint yet.' }));
  } else if (line.rows.length < 3) {
    parts.push(name, el('span', { text: ` has ${line.rows.length} scored checkpoint${line.rows.length > 1 ? 's' : ''}: too few to judge.` }));
  } else {
    tone = 'healthy';
    parts.push(el('span.shape', { text: '✓' }), name, el('span', { text: ' shows no degradation.' }));
  }
  if (best) {
    parts.push(el('span.take', {}, '★ Take ', el('b', { text: best })));
    if (meta?.path) parts.push(copyButton(meta.path, 'Copy path'));
  }
  for (const other of others.slice(0, 3)) parts.push(other);
  return { tone, parts, watcher: watcherText(state?.watcher, time) };
}

/** How far the last checkpoint lies below the best. */
const lossOf = (line) => line.dse[line.best] - line.dse[line.dse.length - 1];

const bestText = (run, line) => placeOf(run.points, line, line.best);

const LATE = 2.5; // missed words of a watcher after which it counts as silent
const GRACE = 30; // seconds

/** What the watcher does, in a few words. */
export function watcherText(watcher, now) {
  if (!watcher) return { tone: 'none', text: 'no watcher', title: 'No watcher has said anything about this run.' };
  const silent = now - watcher.seen;
  const seen = Number.isFinite(watcher.seen) ? `last seen ${ago(silent)}` : '';
  if (!watcher.alive) return { tone: 'none', text: `watcher ended ${ago(silent)}`, title: short(watcher.message, 300) };
  if (silent > LATE * (watcher.every || 60) + GRACE) return { tone: 'silent', text: `watcher silent, ${seen}`, title: short(watcher.message, 300) };
  const doing = watcher.current ? `measuring ${short(watcher.current, 60)}` : 'watching';
  const queue = watcher.queue > 0 ? ` · ${watcher.queue} waiting` : '';
  return { tone: 'alive', text: `${doing}${queue}`, title: [seen, short(watcher.message, 300)].filter(Boolean).join('\n') };
}
