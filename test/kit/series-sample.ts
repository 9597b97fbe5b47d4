import type { Sample } from '../../src/telemetry/sample.ts';

export function sample(vm: string, wallMs: number, values: Readonly<Record<string, number>>): Sample {
  return { vm, instanceId: 'i-1', wallMs, monotonicMs: wallMs % 1e9, intervalMs: 1000, values };
}
