import { type AgentSettings, agentSettings } from '../allocation/agent-settings.ts';
import { ConfigError } from '../config/config-error.ts';
import type { TenantSpecs } from './tenant-specs.ts';
import type { VmInventory } from './vm-inventory.ts';

interface SettingsOptions {
  readonly inventory: VmInventory;
  readonly specs: TenantSpecs;
}

/** What specifications say to agents: read once per version, as a specification may have a megabyte. */
export class SettingsOfAgents {
  readonly #options: SettingsOptions;
  readonly #known = new Map<
    string,
    { readonly version: number; readonly settings: AgentSettings | undefined }
  >();

  constructor(options: SettingsOptions) {
    this.#options = options;
  }

  forget(vm: string): void {
    this.#known.delete(vm);
  }

  /** Undefined for a VM that is not declared, or whose specification cannot be read. */
  of(vm: string): AgentSettings | undefined {
    const { inventory, specs } = this.#options;
    const outline = inventory.outline(vm);
    if (outline === undefined || outline.desired === 'deleted') {
      this.#known.delete(vm);
      return undefined;
    }
    const known = this.#known.get(vm);
    if (known?.version === outline.version) return known.settings;
    const settings = settingsFrom(() => agentSettings(specs.parse(inventory.get(vm))));
    this.#known.set(vm, { version: outline.version, settings });
    return settings;
  }
}

function settingsFrom(read: () => AgentSettings): AgentSettings | undefined {
  try {
    return read();
  } catch (thrown) {
    if (thrown instanceof ConfigError) return undefined;
    throw thrown;
  }
}
