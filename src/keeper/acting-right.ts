/** Which shadow may take over, if one may: that of one connection between the two keepers and no other. */
export interface ShadowClaimant {
  readonly host: string;
  /** Number of the copy: a shadow that was made anew has another one. */
  readonly copy: number;
}

/**
 * The right to act as one VM, of which there is one among all hosts, whoever is reachable. It is on record where all of
 * them look, under a token that grows each time that it passes on.
 */
export interface ActingRight {
  /** What this keeper acts under. */
  readonly token: number;
  /** All output waits for this shadow from now on: it may take over by itself. Rejects when that cannot be written down. */
  arm(shadow: ShadowClaimant, signal?: AbortSignal): Promise<void>;
  /**
   * Goes on without the shadow: it may not take over any more. Asks until there is an answer.
   * `superseded`: another host acts already.
   */
  goAlone(signal?: AbortSignal): Promise<'granted' | 'superseded'>;
  /**
   * The same for one that has nothing to go on with but to begin anew: the shadow comes first, for so long as `graceMs` after
   * somebody answers.
   */
  yieldThenGoAlone(graceMs: number): Promise<'granted' | 'superseded'>;
  /** Rejects where nobody answers now, or where the right has passed on: before something that cannot be taken back. */
  confirm(): Promise<void>;
  /** The VM has ended in good order: whoever starts it next may. */
  release(signal?: AbortSignal): Promise<void>;
}
