/**
 * What TensorBoard around the frame tells: theme, run colours, address, reloads. All of it may be missing (another
 * host, a frame of another origin), so every access has a plain substitute.
 */

// Colours of TensorBoard's Time Series tab, by a run's place among all runs, light and dark.
const PALETTE = [
  ['#425066', '#8e98a3'], ['#12b5cb', '#12b5cb'], ['#e52592', '#e52592'], ['#f9ab00', '#f9ab00'],
  ['#9334e6', '#9334e6'], ['#7cb342', '#7cb342'], ['#e8710a', '#e8710a'],
];

export const isDark = () => document.documentElement.dataset.theme === 'dark';
export const runColour = (index) => PALETTE[index % PALETTE.length][isDark() ? 1 : 0];

/** TensorBoard's window, or our own where it cannot be reached. */
function around() {
  try {
    return window.parent.document ? window.parent : window;
  } catch {
    return window;
  }
}

/** Follow TensorBoard's theme, but print on white; calls back on changes. */
export function followTheme(changed) {
  const host = around();
  const dark = () => {
    if (host !== window) return host.document.body.classList.contains('dark-mode');
    return matchMedia('(prefers-color-scheme: dark)').matches;
  };
  const root = document.documentElement;
  const apply = () => {
    const theme = dark() && !root.classList.contains('printing') ? 'dark' : 'light';
    if (root.dataset.theme === theme) return;
    root.dataset.theme = theme;
    changed();
  };
  const print = (on) => {
    root.classList.toggle('printing', on);
    apply();
    changed(); // the paper is narrower than the window
  };
  apply();
  window.addEventListener('beforeprint', () => print(true));
  window.addEventListener('afterprint', () => print(false));
  if (host !== window) new MutationObserver(apply).observe(host.document.body, { attributeFilter: ['class'] });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', apply);
}

/** Call back whenever TensorBoard has new data or new runs. */
export function followReloads(reloaded) {
  const channel = new MessageChannel();
  channel.port1.onmessage = (event) => {
    let message;
    try {
      message = JSON.parse(event.data);
    } catch {
      return;
    }
    if (message.isReply) return;
    channel.port1.postMessage(JSON.stringify({ type: message.type, id: message.id, payload: null, error: null, isReply: true }));
    if (message.type === 'experimental.DataReloaded' || message.type === 'experimental.RunsChanged') reloaded();
  };
  window.parent.postMessage('experimental.bootstrap', '*', [channel.port2]);
}

/** The tab is open and the window is not in the background. */
export const isVisible = () => window.innerHeight > 0 && document.visibilityState === 'visible';

/** The run filter of TensorBoard's address, a regular expression. */
export function runFilter() {
  return new URLSearchParams(around().location.search).get('runFilter') ?? '';
}

const PREFIX = 'p.dse.';

/** Our part of the address: what a link to this view says. */
export function readAddress() {
  const found = {};
  for (const part of around().location.hash.replace(/^#/, '').split('&')) {
    const [name, value = ''] = part.split('=');
    if (!name.startsWith(PREFIX)) continue;
    try {
      found[name.slice(PREFIX.length)] = decodeURIComponent(value);
    } catch {
      // a damaged link: that part is left out
    }
  }
  return found;
}

/** Write our part of the address without a history entry; empty values are left out. */
export function writeAddress(values) {
  const host = around();
  const others = host.location.hash.replace(/^#/, '').split('&').filter((part) => part && !part.startsWith(PREFIX));
  if (host !== window && others[0] !== 'dse') return; // another tab is shown
  const own = Object.entries(values)
    .filter(([, value]) => value !== '' && value !== null && value !== undefined)
    .map(([name, value]) => `${PREFIX}${name}=${encodeURIComponent(value)}`);
  const hash = `#${[...others, ...own].join('&')}`;
  if (hash !== host.location.hash) host.history.replaceState(host.history.state, '', hash);
}

/** Choices that outlive the page, kept per log folder. */
export class Memory {
  constructor(logdir) {
    this.key = `dse-tab:${logdir}`;
  }

  read() {
    try {
      return JSON.parse(localStorage.getItem(this.key)) ?? {};
    } catch {
      return {};
    }
  }

  write(values) {
    try {
      localStorage.setItem(this.key, JSON.stringify(values));
    } catch {
      // storage is full or forbidden: the choices last as long as the page
    }
  }
}
