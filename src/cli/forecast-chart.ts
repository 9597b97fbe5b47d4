/** What a chart is drawn from. Times in ms relative to now: the past is below zero. */
export interface ChartInput {
  readonly past: readonly { readonly atMs: number; readonly value: number }[];
  readonly future: readonly {
    readonly atMs: number;
    readonly low: number;
    readonly middle: number;
    readonly high: number;
  }[];
  /** A line through all of it: what the VM may use. */
  readonly allocated: number | undefined;
  readonly valueText: (value: number) => string;
}

export interface ChartSize {
  readonly columns: number;
  readonly rows: number;
}

const LABEL_COLUMNS = 12;
const PAST = '•';
const FAN = '░';
const MIDDLE = '━';
const LIMIT = '┄';
const NOW = '│';
const HOUR_MS = 3_600_000;

/**
 * The past on the left, what will be on the right: its median, and around it where it is with four of five chances. Both have
 * as many columns as they have hours.
 */
export function forecastChart(input: ChartInput, { columns, rows }: ChartSize): string {
  const { past, future, allocated, valueText } = input;
  const width = Math.max(20, columns - LABEL_COLUMNS - 2);
  const fromMs = Math.min(0, ...past.map(({ atMs }) => atMs));
  const toMs = Math.max(1, ...future.map(({ atMs }) => atMs));
  const most = Math.max(
    ...past.map(({ value }) => value),
    ...future.map(({ high }) => high),
    allocated ?? 0,
    Number.MIN_VALUE,
  );
  const cells = Array.from({ length: rows }, () => new Array<string>(width).fill(' '));
  const columnOf = (atMs: number) =>
    Math.min(width - 1, Math.max(0, Math.floor(((atMs - fromMs) / (toMs - fromMs)) * width)));
  const rowOf = (value: number) =>
    Math.min(rows - 1, Math.max(0, rows - 1 - Math.floor((value / most) * (rows - 0.01))));
  const put = (row: number, column: number, sign: string) => {
    const line = cells[row];
    if (line !== undefined) line[column] = sign;
  };
  if (allocated !== undefined)
    for (let column = 0; column < width; column += 1) put(rowOf(allocated), column, LIMIT);
  const nowColumn = columnOf(0);
  for (let row = 0; row < rows; row += 1) put(row, nowColumn, NOW);
  for (let column = nowColumn + 1; column < width; column += 1) {
    const atMs = fromMs + ((column + 0.5) / width) * (toMs - fromMs);
    const at = fanAt(future, atMs);
    if (at === undefined) continue;
    for (let row = rowOf(at.high); row <= rowOf(at.low); row += 1) put(row, column, FAN);
    put(rowOf(at.middle), column, MIDDLE);
  }
  for (const { atMs, value } of past) put(rowOf(value), columnOf(atMs), PAST);
  const lines = cells.map((line, row) => {
    const isLabelled = row === 0 || row === rows - 1 || row === rows >> 1;
    const label = isLabelled ? valueText(((rows - 1 - row) / (rows - 1)) * most) : '';
    return `${label.padStart(LABEL_COLUMNS)} ${line.join('')}`.trimEnd();
  });
  const begin = `-${hours(-fromMs)}`;
  const end = `+${hours(toMs)}`;
  const before = Math.max(0, nowColumn - begin.length - 1);
  const after = Math.max(1, width - nowColumn - end.length - 2);
  const axis = `${begin}${' '.repeat(before)}now${' '.repeat(after)}${end}`;
  return `${lines.join('\n')}\n${' '.repeat(LABEL_COLUMNS + 1)}${axis}`;
}

type Fan = ChartInput['future'][number];

/** On straight lines between the horizons. */
function fanAt(future: readonly Fan[], atMs: number): Fan | undefined {
  const upper = future.findIndex((row) => row.atMs >= atMs);
  const [to, from] = [future[upper], future[upper - 1]];
  if (to === undefined) return undefined;
  if (from === undefined) return to;
  const share = (atMs - from.atMs) / (to.atMs - from.atMs);
  const between = (low: number, high: number) => low + share * (high - low);
  return {
    atMs,
    low: between(from.low, to.low),
    middle: between(from.middle, to.middle),
    high: between(from.high, to.high),
  };
}

function hours(ms: number): string {
  return ms < HOUR_MS ? `${Math.round(ms / 60_000)} min` : `${Number((ms / HOUR_MS).toFixed(1))} h`;
}
