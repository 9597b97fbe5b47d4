import type { Policy } from '../api/access-resources.ts';
import { ConfigError } from '../config/config-error.ts';
import type { SpecDefaults } from '../config/spec-defaults.ts';
import { withDefaults } from '../config/spec-defaults.ts';
import { disksOf } from '../config/spec-disks.ts';
import { parseVmSpec, rewrittenSpec } from '../config/vm-spec.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import type { GivenSpec } from '../control/run-directory.ts';
import { HostError } from './host-error.ts';
import { confine, confineFiles } from './tenant-confinement.ts';
import type { Tenants } from './tenants.ts';
import type { DeclaredVm, VmExtent, VmInventory } from './vm-inventory.ts';

type SaidSpec = Pick<DeclaredVm, 'spec' | 'directory' | 'tenant'>;

/** What a keeper is given of a VM, and how far it may go; see `KeeperWishes`. */
export interface RunOrder {
  /** YAML. */
  readonly spec: string;
  readonly directories?: readonly string[];
  readonly cpuShareMax?: number;
}

interface Limited {
  readonly limit: 'vmsMax' | 'memoryBytesMax' | 'vcpusMax' | 'diskBytesMax';
  readonly unit: string;
}

/** What all VMs of a tenant may have together. */
const LIMITED = {
  vms: { limit: 'vmsMax', unit: 'VMs' },
  memoryBytes: { limit: 'memoryBytesMax', unit: 'bytes of memory' },
  vcpus: { limit: 'vcpusMax', unit: 'vCPUs' },
  diskBytes: { limit: 'diskBytesMax', unit: 'bytes of disks' },
} as const satisfies Record<string, Limited>;

/**
 * Specifications in the light of the policy of whose they are. Those of the host itself say all that they mean, and may
 * reach whatever the daemon may.
 */
export class TenantSpecs {
  readonly #tenants: Tenants;
  readonly #inventory: VmInventory;

  constructor({ tenants, inventory }: { tenants: Tenants; inventory: VmInventory }) {
    this.#tenants = tenants;
    this.#inventory = inventory;
  }

  /** @throws ConfigError */
  parse(said: SaidSpec): VmSpec {
    return parsed(said, this.#policyOf(said)?.defaults ?? {});
  }

  /** One that is to be remembered. @throws ConfigError; HostError HOST_SPEC_REFUSED, HOST_LIMIT */
  admit(said: SaidSpec): VmSpec {
    const policy = this.#policyOf(said);
    const spec = parsed(said, policy?.defaults ?? {});
    if (policy !== undefined) {
      confine(spec, policy.limits);
      this.#ensureRoom(spec, policy);
    }
    return spec;
  }

  /** Whether it may act on other hosts as well. Most say nothing of hosts, and need not be read for that. */
  isSpread(said: SaidSpec): boolean {
    if (said.tenant === null && !said.spec.includes('hosts')) return false;
    try {
      return this.parse(said).shadow.hosts !== undefined;
    } catch (thrown) {
      if (thrown instanceof ConfigError) return false;
      throw thrown;
    }
  }

  /** How large it is; undefined where its specification is no longer one. */
  extentOf(said: SaidSpec): VmExtent | undefined {
    try {
      return extentOf(this.parse(said));
    } catch (thrown) {
      if (thrown instanceof ConfigError) return undefined;
      throw thrown;
    }
  }

  /**
   * What a keeper is given. What was looked at when it was declared is looked at again: links and policies change. Where
   * it goes on with the specification that a killed one `left`, its files are looked at, which are opened anew.
   * @throws ConfigError; HostError HOST_SPEC_REFUSED
   */
  orderOf(said: SaidSpec, left: GivenSpec | undefined): RunOrder {
    const policy = this.#policyOf(said);
    if (policy === undefined) return { spec: said.spec };
    const { defaults, limits } = policy;
    const { directories, cpuShareMax } = limits;
    const bounds = { directories, ...(cpuShareMax !== null && { cpuShareMax }) };
    if (left !== undefined) {
      confineFiles(parseVmSpec(left.text, left), limits);
      return { spec: said.spec, ...bounds };
    }
    confine(parsed(said, defaults), limits);
    return {
      spec: rewrittenSpec(said.spec, (value) => isolated(withDefaults(value, defaults))),
      ...bounds,
    };
  }

  #policyOf({ tenant }: SaidSpec): Policy | undefined {
    return tenant === null ? undefined : this.#tenants.policy(tenant);
  }

  #ensureRoom(spec: VmSpec, { name: tenant, limits }: Policy): void {
    const used = this.#inventory.usage(tenant, { except: spec.name });
    const asked = { vms: 1, ...extentOf(spec) };
    for (const [what, { limit, unit }] of Object.entries(LIMITED) as [keyof typeof LIMITED, Limited][]) {
      const allowed = limits[limit];
      if (allowed === null || used[what] + asked[what] <= allowed) continue;
      throw new HostError(
        'HOST_LIMIT',
        `${tenant} uses ${used[what]} ${unit} besides this VM, which asks for ${asked[what]}; allowed are ${allowed}`,
        {
          hint: 'Delete a VM, make one smaller, or have an administrator of the host change the policy.',
          facts: { limit, used: used[what], asked: asked[what], allowed },
        },
      );
    }
  }
}

function parsed({ spec, directory }: SaidSpec, defaults: SpecDefaults): VmSpec {
  return parseVmSpec(spec, { source: 'specification', directory, defaults });
}

/** passt by itself lets a guest reach what listens on the loopback of this machine only, as this very API might. */
function isolated(value: unknown): unknown {
  const { nics = [], ...rest } = value as { nics?: { uplink: { kind: string } }[] };
  return {
    ...rest,
    nics: nics.map(({ uplink, ...nic }) => ({
      ...nic,
      uplink: uplink.kind === 'passt' ? { ...uplink, hostLoopback: false } : uplink,
    })),
  };
}

/** A disk whose size is not said counts nothing: where they are counted a specification without it is refused. */
export function extentOf(spec: VmSpec): VmExtent {
  const { memoryBytes, vcpus } = spec;
  const sizes = disksOf(spec).map(({ disk: { readOnly, size = 0 } }) => (readOnly ? 0 : size));
  return { memoryBytes, vcpus, diskBytes: sizes.reduce((sum, bytes) => sum + bytes, 0) };
}
