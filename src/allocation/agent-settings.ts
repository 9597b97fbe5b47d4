import { type AllocationMode, allocationSchema, forecastSchema } from '../config/allocation-schema.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import type { Resource } from './resource.ts';
import type { ScaledResource } from './resource-tracker.ts';
import { DEFAULT_SCALING } from './scaling-policy.ts';

/** What a specification says to a VM's agent. */
export interface AgentSettings {
  readonly mode: AllocationMode;
  readonly horizonMs: number;
  readonly scaled: Readonly<Partial<Record<Resource, ScaledResource>>>;
}

/** A VM that was given no bounds of its processors may get this share of its vCPUs, and up to all of them. */
const CPU_MIN_SHARE = 0.1;
/** Of other resources: never nothing, or nothing would show that more is needed. */
const MIN_SHARE = 0.01;
/** A guest that has too little memory kills its processes. */
const MEMORY_MIN_SHARE = 0.25;

/** A VM begins with all that it may get: that is what it has without an agent. */
export function agentSettings(spec: VmSpec): AgentSettings {
  const { horizonMs } = spec.forecast ?? forecastSchema.parse({});
  const allocation = spec.allocation ?? allocationSchema.parse({});
  const { mode, scalingPolicy, preAllocationThreshold } = allocation;
  const { quantile, margin: marginShare, lowerAfterMs } = scalingPolicy;
  const common = { quantile, marginShare, lowerAfterMs, preAllocationThreshold, reservationMs: horizonMs };
  const scaledFrom = (
    { max, all }: { readonly max: number; readonly all: number },
    min = Math.ceil(max * MIN_SHARE),
  ): ScaledResource => ({
    policy: { ...DEFAULT_SCALING, ...common, min: Math.min(min, max), max },
    allocated: max,
    all,
  });
  const cpuMax = allocation.cpu?.max ?? spec.vcpus * 1000;
  const scaled: Partial<Record<Resource, ScaledResource>> = {
    cpuMillicores: scaledFrom(
      { max: cpuMax, all: spec.vcpus * 1000 },
      allocation.cpu?.min ?? Math.ceil(cpuMax * CPU_MIN_SHARE),
    ),
  };
  if (allocation.memory !== undefined)
    scaled.memoryBytes = scaledFrom(
      { max: allocation.memory.max ?? spec.memoryBytes, all: spec.memoryBytes },
      allocation.memory.min ?? Math.ceil(spec.memoryBytes * MEMORY_MIN_SHARE),
    );
  // Without a largest amount there is nothing that could be kept ready.
  if (allocation.disk?.max !== undefined)
    scaled.diskBytesPerSecond = scaledFrom(
      { max: allocation.disk.max, all: Number.POSITIVE_INFINITY },
      allocation.disk.min,
    );
  if (allocation.net?.max !== undefined)
    scaled.netBytesPerSecond = scaledFrom(
      { max: allocation.net.max, all: Number.POSITIVE_INFINITY },
      allocation.net.min,
    );
  return { mode, horizonMs, scaled };
}
