import { Instance, type InstanceSetting } from './instance.ts';
import type { ServedDisks } from './served-disks.ts';

interface InstanceWish {
  readonly role: 'primary' | 'standby';
  /** What it is for, where its role does not say it. */
  readonly purpose?: string;
  readonly signal: AbortSignal | undefined;
  /** In place of the VM's own. */
  readonly disks?: ServedDisks;
}

/** The QEMUs of one VM: no two have the same number, over all of its keepers. */
export class InstanceSeries {
  readonly #setting: InstanceSetting;
  readonly #publish: (kind: string, facts: Readonly<Record<string, unknown>>) => void;
  #count = 0;

  constructor(
    setting: InstanceSetting,
    publish: (kind: string, facts: Readonly<Record<string, unknown>>) => void,
  ) {
    this.#setting = setting;
    this.#publish = publish;
  }

  /** Numbers go on after this one. */
  countFrom(instance: number): void {
    this.#count = instance;
  }

  async start({ role, purpose = role, signal, disks }: InstanceWish): Promise<Instance> {
    this.#count += 1;
    const setting = disks === undefined ? this.#setting : { ...this.#setting, disks };
    const instance = await Instance.start(setting, { number: this.#count, role, signal });
    this.#publish('qemu-started', { role: purpose, instance: instance.number, pid: instance.pid });
    return instance;
  }
}
