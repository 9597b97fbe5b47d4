import type { VmEvent } from '../control/vm-event.ts';

/** `14:03:07.123  redis-demo  promoted  epoch 812  instance=2 promoteMs=9.3` */
export function eventText({ time, vm, kind, epoch, facts }: VmEvent): string {
  return [localTime(time), vm, kind, `epoch ${epoch}`, factsText(facts)].join('  ').trimEnd();
}

/** `instance=2 promoteMs=9.3` */
export function factsText(facts: Readonly<Record<string, unknown>>): string {
  return Object.entries(facts)
    .map(([key, value]) => `${key}=${factText(value)}`)
    .join(' ');
}

export function localTime(iso: string): string {
  const at = new Date(iso);
  const digits = (value: number, width: number) => String(value).padStart(width, '0');
  const clock = [at.getHours(), at.getMinutes(), at.getSeconds()].map((part) => digits(part, 2)).join(':');
  return `${clock}.${digits(at.getMilliseconds(), 3)}`;
}

function factText(value: unknown): string {
  if (typeof value === 'number') return String(Math.round(value * 1000) / 1000);
  return typeof value === 'string' && /^[\w.:/-]+$/.test(value) ? value : JSON.stringify(value);
}
