import type { Sample } from '../telemetry/sample.ts';
import { RESOURCES, type Resource } from './resource.ts';

/** What a VM wanted of one resource since the sample before, and how it was held back. */
export interface Demand {
  /** In units of the resource: what it used, and for processors what it waited for as well. */
  readonly used: number;
  /** Share of time in which it was held back. Zero where that is not measured. */
  readonly pressureShare: number;
  readonly outOfMemory: boolean;
}

export type Demands = Readonly<Partial<Record<Resource, Demand>>>;

/** Less than this share of its memory available, and a guest is about to kill processes. */
const AVAILABLE_SHARE_MIN = 0.03;

/** Resources that nothing was measured of are not in it. */
export function demandsOf(sample: Sample): Demands {
  const demands: Partial<Record<Resource, Demand>> = {};
  for (const resource of Object.keys(RESOURCES) as Resource[]) {
    const demand = DEMANDS[resource](sample.values);
    if (demand !== undefined) demands[resource] = demand;
  }
  return demands;
}

type Values = Sample['values'];

const DEMANDS: Readonly<Record<Resource, (values: Values) => Demand | undefined>> = {
  cpuMillicores: (values) => {
    const used = values['cpu.usedCores'];
    if (used === undefined) return undefined;
    const wanted = used + (values['cpu.waitedCores'] ?? 0);
    return plain(1000 * wanted, values['cpu.throttledShare']);
  },
  memoryBytes: (values) => {
    const total = values['memory.guestTotalBytes'];
    const available = values['memory.guestAvailableBytes'];
    const resident = values['memory.residentBytes'];
    if (total !== undefined && available !== undefined) {
      const outOfMemory = available < AVAILABLE_SHARE_MIN * total;
      return { ...plain(Math.max(0, total - available), values['pressure.memoryShare']), outOfMemory };
    }
    // Without a guest that tells: all that it ever touched.
    return resident === undefined ? undefined : plain(resident, values['pressure.memoryShare']);
  },
  diskBytesPerSecond: (values) =>
    // What waits for a disk does so with and without a limit: only the limit itself shows that it is too low.
    sumOf(values, /^disk\..+\.(?:read|write)BytesPerSecond$/, 0),
  netBytesPerSecond: (values) => sumOf(values, /^net\..+\.(?:received|sent)BytesPerSecond$/, 0),
};

function sumOf(values: Values, name: RegExp, pressureShare: number | undefined): Demand | undefined {
  let sum: number | undefined;
  for (const [metric, value] of Object.entries(values)) if (name.test(metric)) sum = (sum ?? 0) + value;
  return sum === undefined ? undefined : plain(sum, pressureShare);
}

function plain(used: number, pressureShare: number | undefined): Demand {
  return { used, pressureShare: pressureShare ?? 0, outOfMemory: false };
}
