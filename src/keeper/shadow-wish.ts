import type { VmSpec } from '../config/vm-spec-schema.ts';
import type { KeeperOptions } from './keeper-options.ts';

/** Whoever starts the keeper says so, else a keeper before it was told so, else the specification. */
export function isShadowWanted({ spec, shadowWanted, runDirectory }: KeeperOptions): boolean {
  return shadowWanted ?? runDirectory.shadowWanted ?? spec.shadow.enabled;
}

/** The same VM, to be looked at as one with a shadow or without. */
export function withShadow(spec: VmSpec, enabled: boolean): VmSpec {
  return { ...spec, shadow: { ...spec.shadow, enabled } };
}
