/** Which shadow may take over, if one may: that of one connection between the two keepers and no other. */
export interface ShadowClaimant {
  readonly host: string;
  /** Number of the copy: a shadow that was made anew has another one. */
  readonly copy: number;
}

/** A word of the keeper of a shadow: it has heard this host. */
export interface HeardWord {
  /** When that was sent which it has heard, on CLOCK_BOOTTIME. */
  readonly sentMs: number;
  /** It takes nothing over before it has heard nothing for so long. */
  readonly silenceMinMs: number;
}

/** What somebody has to hear of who carries out what a right allows. Called when it happens; must not throw. */
export interface RightWatcher {
  /** The right has ended, or may have: the VM stands still, and nothing leaves, until `onRegained`. */
  readonly onEnded: () => void;
  readonly onRegained: () => void;
  /** Another host acts, or whoever is there may not. */
  readonly onSuperseded: () => void;
  /** Output that was acknowledged, and has waited because the shadow might have taken over, may leave while this is called. */
  readonly onSure: () => void;
  /** For so long such output waits, or waited until it left. Not told of each. */
  readonly onDoubt: (what: 'waits' | 'waited', forMs: number) => void;
  /** `why` it is away, for people, where that is known. */
  readonly onStore: (contact: 'away' | 'back', why?: string) => void;
}

/** How the right stands, as it is shown to people. */
export interface RightStatus {
  readonly token: number;
  readonly mode: 'in-sync' | 'alone' | 'claiming' | 'ended';
  /** For so long the store of leases has not answered; null: it has. */
  readonly storeAwayMs: number | null;
  /** Until the VM stands still unless the right is renewed; null where it does not end by itself. */
  readonly endsInMs: number | null;
  /** For so long acknowledged output has been waiting, as the shadow may have taken over; null: none does. */
  readonly outputWaitsMs: number | null;
}

/**
 * The right to act as one VM, of which there is one among all hosts, whoever is reachable. It is on record where all of
 * them look, under a token that grows each time that it passes on.
 */
export interface ActingRight {
  /** What this keeper acts under. */
  readonly token: number;
  /** Under which token the state was saved that this host is on record with, if it is: what is older is the past. */
  readonly suspended: number | undefined;
  /** Has ended, and nobody has taken it, as far as is known: the VM stands still. */
  readonly hasEnded: boolean;
  status(): RightStatus;
  /**
   * Whether something may leave at this very moment that a shadow has acknowledged, or that nobody else knows. To be asked for
   * each frame: whoever was stopped for a while asks with the new time, before anything else.
   */
  mayRelease(what: 'acknowledged' | 'unknown'): boolean;
  /** One watcher at a time. What happened before is told at once. */
  watch(watcher: RightWatcher): void;
  /** Resolves when there is a right that has not ended. */
  regained(signal?: AbortSignal): Promise<void>;
  /** All output waits for this shadow from now on: it may take over by itself. Rejects when that cannot be written down. */
  arm(shadow: ShadowClaimant, signal?: AbortSignal): Promise<void>;
  /** For a while after that this shadow acts by no means, and what it has acknowledged may leave. */
  noteHeard(shadow: Pick<ShadowClaimant, 'copy'>, word: HeardWord): void;
  /** This shadow has promised not to act. What follows from that is written down when somebody answers. */
  dismissed(shadow: Pick<ShadowClaimant, 'copy'>): void;
  /**
   * Goes on without the shadow: it may not take over any more. Asks until there is an answer.
   * `superseded`: another host acts already.
   */
  goAlone(signal?: AbortSignal): Promise<'granted' | 'superseded'>;
  /**
   * The same for one that has nothing to go on with but to begin anew: the shadow comes first, for so long as `graceMs` after
   * somebody answers.
   */
  yieldThenGoAlone(graceMs: number, signal?: AbortSignal): Promise<'granted' | 'superseded'>;
  /** The shadow is to take over, now or later, and nothing else becomes of the record: whether it has, after `graceMs` at most. */
  isFollowed(graceMs: number, signal?: AbortSignal): Promise<boolean>;
  /** Rejects where nobody answers now, or where the right has passed on: before something that cannot be taken back. */
  confirm(): Promise<void>;
  /** Who acts now, as far as somebody answers at once. */
  holder(): Promise<string | undefined>;
  /**
   * Goes on without a shadow and with its state on disk here, which is about to be whole: no other host may start the VM by
   * itself from now on. `superseded`: another host acts already.
   */
  suspend(signal?: AbortSignal): Promise<'granted' | 'superseded'>;
  /** That state is used or given up, or never came about. To be written down when somebody answers. */
  forgetState(): void;
  /** The VM has ended in good order: whoever starts it next may; where its state lies here, this host only. */
  release(options?: { readonly keepsState?: boolean; readonly signal?: AbortSignal }): Promise<void>;
  /** Lets go of the store. What is on record stays, and a right that ends by itself does. */
  [Symbol.asyncDispose](): Promise<void>;
}
