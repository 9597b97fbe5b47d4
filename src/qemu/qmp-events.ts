/** The events of QEMU that Understudy acts on, with their data (QEMU qapi/run-state.json, qapi/migration.json). */
export interface QmpEventData {
  readonly STOP: unknown;
  readonly RESUME: unknown;
  readonly RESET: { readonly guest: boolean; readonly reason: string };
  readonly SHUTDOWN: { readonly guest: boolean; readonly reason: string };
  readonly POWERDOWN: unknown;
  /** `action` is what QEMU does about it: with `-action panic=pause` the VM stands still afterwards. */
  readonly GUEST_PANICKED: { readonly action: 'pause' | 'poweroff' | 'run'; readonly info?: unknown };
  readonly GUEST_CRASHLOADED: { readonly action: 'pause' | 'poweroff' | 'run'; readonly info?: unknown };
  readonly MIGRATION: { readonly status: string };
}

export type QmpEventName = keyof QmpEventData;

export interface QmpEvent {
  /** A {@link QmpEventName}, or one of the many others that QEMU knows. */
  readonly name: string;
  readonly data: unknown;
  /** QEMU's own wall clock. */
  readonly wallMs: number;
}
