import type { Policy } from '../api/access-resources.ts';
import type { SpecDefaults } from '../config/spec-defaults.ts';
import { withDefaults } from '../config/spec-defaults.ts';
import { parseVmSpec, rewrittenSpec } from '../config/vm-spec.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import { HostError } from './host-error.ts';
import { confine } from './tenant-confinement.ts';
import type { Tenants } from './tenants.ts';
import type { DeclaredVm, VmInventory } from './vm-inventory.ts';

type SaidSpec = Pick<DeclaredVm, 'spec' | 'directory' | 'tenant'>;

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

  /**
   * The text that a keeper is given. What was looked at when it was declared is looked at again: links and policies
   * change. @throws ConfigError; HostError HOST_SPEC_REFUSED
   */
  textToRun(said: SaidSpec): string {
    const policy = this.#policyOf(said);
    if (policy === undefined) return said.spec;
    confine(parsed(said, policy.defaults), policy.limits);
    return rewrittenSpec(said.spec, (value) => isolated(withDefaults(value, policy.defaults)));
  }

  #policyOf({ tenant }: SaidSpec): Policy | undefined {
    return tenant === null ? undefined : this.#tenants.policy(tenant);
  }

  #ensureRoom({ name, memoryBytes }: VmSpec, { name: tenant, limits }: Policy): void {
    const others = this.#inventory.usage(tenant, { except: name });
    const { vmsMax, memoryBytesMax } = limits;
    if (vmsMax !== null && others.vms + 1 > vmsMax) throw limitReached(`${tenant} may have ${vmsMax} VMs`);
    if (memoryBytesMax !== null && others.memoryBytes + memoryBytes > memoryBytesMax) {
      throw limitReached(
        `the VMs of ${tenant} may have ${memoryBytesMax} bytes of memory together, and would have ` +
          `${others.memoryBytes + memoryBytes}`,
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

function limitReached(message: string): HostError {
  return new HostError('HOST_LIMIT', message, {
    hint: 'Delete a VM, make one smaller, or have an administrator of the host change the policy.',
  });
}
