import { styleText } from 'node:util';
import type { Host } from '../api/resources.ts';
import type { Figures } from '../api/stats.ts';
import { formatBytes } from '../base/units.ts';
import { duration, table } from './output.ts';
import type { TopVm } from './top-sample.ts';

interface Column {
  readonly title: string;
  readonly cell: (vm: TopVm) => string;
  /** What it is sorted by; null comes last. */
  readonly key: (vm: TopVm) => number | string | null;
}

/** A column of figures: empty while there are none. Large ones come first when it is sorted by. */
function figure(
  title: string,
  read: (figures: Figures) => number | null,
  text: (value: number) => string,
): Column {
  const key = ({ figures }: TopVm) => (figures === null ? null : read(figures));
  return {
    title,
    key,
    cell: (vm) => {
      const value = key(vm);
      return value === null ? '' : text(value);
    },
  };
}

const ms = (value: number) => `${value.toFixed(1)} ms`;
const COLUMNS: readonly Column[] = [
  { title: 'NAME', cell: ({ name }) => name, key: ({ name }) => name },
  { title: 'STATE', cell: ({ state }) => state, key: ({ state }) => state },
  {
    title: 'EPOCHS/S',
    cell: ({ epochsPerSecond }) => (epochsPerSecond === null ? '' : epochsPerSecond.toFixed(1)),
    key: ({ epochsPerSecond }) => epochsPerSecond,
  },
  figure('PAUSE', ({ pauseMs }) => pauseMs.p50, ms),
  figure('P99', ({ pauseMs }) => pauseMs.p99, ms),
  figure(
    'PAUSED',
    ({ pauseShare }) => pauseShare,
    (value) => `${(100 * value).toFixed(1)} %`,
  ),
  figure('PAGES', ({ dirtyPages }) => dirtyPages.p50, String),
  figure('HELD', ({ heldBytes }) => heldBytes, formatBytes),
  figure('LAG', ({ lagMs }) => lagMs, ms),
  figure('PROMOTED', ({ promotions }) => promotions, String),
  figure('CLOCK', ({ clockErrorMs }) => clockErrorMs, ms),
  figure('MEMORY', ({ memoryBytes }) => memoryBytes, formatBytes),
];

export const TOP_COLUMNS: readonly string[] = COLUMNS.map(({ title }) => title);

export interface TopOrder {
  /** Index into {@link TOP_COLUMNS}. */
  readonly column: number;
  readonly reversed: boolean;
}

/** Names and states from a to z, figures from the largest; what has none last, whichever way. */
export function sortedVms(vms: readonly TopVm[], { column, reversed }: TopOrder): TopVm[] {
  const { key } = COLUMNS[column] ?? (COLUMNS[0] as Column);
  const byName = (one: TopVm, other: TopVm) => (one.name < other.name ? -1 : 1);
  return [...vms].sort((one, other) => {
    const [a, b] = [key(one), key(other)];
    if (a === null || b === null) return a === b ? byName(one, other) : a === null ? 1 : -1;
    if (a === b) return byName(one, other);
    const isBefore = typeof a === 'number' && typeof b === 'number' ? a > b : a < b;
    return isBefore === reversed ? 1 : -1;
  });
}

/** As plain text, for files and pipes. */
export function topText(
  { vms, host, wallMs }: Pick<TopView, 'vms' | 'host' | 'wallMs'>,
  order: TopOrder,
): string {
  return [hostLine(host, { vms, wallMs }), '', tableOf(sortedVms(vms, order))].join('\n');
}

export interface TopView {
  readonly vms: readonly TopVm[];
  readonly host: Host | null;
  readonly wallMs: number;
  readonly order: TopOrder;
  /** Rows that are scrolled out at the top. */
  readonly offset: number;
  readonly columns: number;
  readonly rows: number;
  /** What kept the last refresh from succeeding; what is shown is older then. */
  readonly trouble: string | undefined;
  readonly coloured: boolean;
}

/** Lines above and below the rows of VMs. */
const LINES_AROUND = 4;

/** How far a view can be scrolled. */
export function offsetMax(vmCount: number, rows: number): number {
  return Math.max(0, vmCount - Math.max(1, rows - LINES_AROUND));
}

/** Exactly as many lines as the terminal has, none longer than it is wide. Pure. */
export function topFrame(view: TopView): string[] {
  const { vms, host, order, columns, rows, coloured } = view;
  const sorted = sortedVms(vms, order);
  const [head = '', ...body] = tableOf(sorted, order).split('\n');
  const offset = Math.min(view.offset, offsetMax(sorted.length, rows));
  const room = Math.max(0, rows - LINES_AROUND);
  const shown = body.slice(offset, offset + room);
  const hidden = sorted.length - offset - shown.length;
  const style = (format: Parameters<typeof styleText>[0], text: string) =>
    coloured ? styleText(format, text, { validateStream: false }) : text;
  const cut = (text: string) => text.slice(0, columns);
  const lines = [
    cut(`${new Date(view.wallMs).toISOString().slice(11, 19)} UTC  ${hostLine(host, view)}`),
    view.trouble === undefined ? '' : style('red', cut(view.trouble)),
    style('inverse', cut(head.padEnd(columns))),
    ...shown.map((line, index) => {
      const state = sorted[offset + index]?.state ?? '';
      return style(colourOf(state), cut(line));
    }),
  ];
  const below = hidden > 0 ? `, ${hidden} more below` : '';
  const keys = `q quit  s sort by the next column  r reverse  ↑ ↓ scroll${offset > 0 ? `, ${offset} more above` : ''}${below}`;
  while (lines.length < rows - 1) lines.push('');
  return [...lines.slice(0, rows - 1), style('dim', cut(keys))];
}

function hostLine(host: Host | null, { vms, wallMs }: Pick<TopView, 'vms' | 'wallMs'>): string {
  if (host === null) {
    const counted = vms.length === 1 ? '1 VM' : `${vms.length} VMs`;
    return `no host answers; ${counted} of this user`;
  }
  const { declared, running, protected: safe } = host.vms;
  const up = duration(Math.max(0, wallMs - Date.parse(host.startedAt)));
  return `host ${host.version}, up ${up}: ${declared} declared, ${running} running, ${safe} protected`;
}

function tableOf(vms: readonly TopVm[], order?: TopOrder): string {
  const mark = (index: number) => (index === order?.column ? (order.reversed ? '↑' : '↓') : '');
  const head = COLUMNS.map(({ title }, index) => `${title}${mark(index)}`);
  if (vms.length === 0) return [table([head]), 'no VMs'].join('\n');
  return table([head, ...vms.map((vm) => COLUMNS.map(({ cell }) => cell(vm)))]);
}

function colourOf(state: string): 'green' | 'yellow' | 'red' | 'dim' {
  if (state === 'protected') return 'green';
  if (state === 'absent' || state === 'stopped') return 'dim';
  return ['no-answer', 'lost', 'failed'].includes(state) ? 'red' : 'yellow';
}
