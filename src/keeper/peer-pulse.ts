import { createSocket, type Socket } from 'node:dgram';
import { lookup } from 'node:dns/promises';
import { once } from 'node:events';
import type { Clock } from '../base/clock.ts';
import { SampleWindow } from '../base/sample-window.ts';
import type { PathStatus } from '../control/vm-status.ts';
import {
  DEFAULT_HEARTBEAT_POLICY,
  type HeartbeatEffect,
  type HeartbeatEvent,
  type HeartbeatPolicy,
  initialHeartbeat,
  silenceMaxMs,
  stepHeartbeat,
} from '../lease/heartbeat.ts';
import { decodePulse, encodePulse, type Pulse, type PulseSide } from '../wire/pulse-datagram.ts';

const SAMPLES = 256;

export interface Address {
  readonly host: string;
  readonly port: number;
}

export interface SilenceBounds {
  readonly min: number;
  readonly max: number;
}

export interface PulseOptions {
  /** Known to both ends of one link and nobody else. */
  readonly key: Uint8Array;
  readonly side: PulseSide;
  /** A path is lost at the earliest after so long, however steady it was, and at the latest. */
  readonly silenceMs: SilenceBounds;
  readonly clock: Clock;
  readonly onEffect: (effect: HeartbeatEffect) => void;
  /** What this side sends is dated by it, for whom the other side says to have heard that; `clock` by default. */
  readonly stampMs?: () => number;
  /** The other side has heard what was sent here at this time. */
  readonly onEcho?: (sentMs: number) => void;
}

interface Path {
  readonly index: number;
  readonly name: string;
  readonly socket: Socket;
  /** Where the other side was heard, or is told to listen. */
  target: Address | undefined;
  run: number;
  sequence: number;
  heard: { readonly sentMs: number; readonly atMs: number } | undefined;
  readonly rttMs: SampleWindow;
  received: number;
  lost: number;
}

/** So many paths at most; a datagram names its own. */
const PATHS_MAX = 8;

/**
 * Heartbeats to and from the keeper at the other end of a link, on every path at once, in datagrams that nobody else can
 * make. What follows from them, and from their absence, is decided in heartbeat.ts.
 */
export class PeerPulse implements Disposable {
  readonly #options: PulseOptions;
  readonly #policy: HeartbeatPolicy;
  readonly #run: number;
  readonly #stampMs: () => number;
  readonly #sockets: Socket[] = [];
  readonly #paths = new Map<number, Path>();
  #state: ReturnType<typeof initialHeartbeat>;
  #sequence = 0;
  #leastRoundTripMs = Number.POSITIVE_INFINITY;
  #isVouching = true;
  #cancelBeat: () => void = () => {};
  #isOver = false;

  private constructor(options: PulseOptions) {
    this.#options = options;
    const { min: floorMs, max: ceilingMs } = options.silenceMs;
    this.#policy = { ...DEFAULT_HEARTBEAT_POLICY, floorMs, ceilingMs };
    this.#state = initialHeartbeat(this.#policy);
    this.#run = options.clock.wallMs();
    this.#stampMs = options.stampMs ?? (() => options.clock.nowMs());
  }

  /** The side that was called: listens at these addresses, and answers to wherever it hears the other one. */
  static async listen(hosts: readonly string[], options: PulseOptions): Promise<PeerPulse> {
    return await PeerPulse.#begin(options, async (pulse) => {
      for (const host of hosts) {
        const socket = await pulse.#open(host);
        socket.on('message', (datagram, from) => pulse.#hear(datagram, { socket, from }));
      }
    });
  }

  /** The side that calls: one path to each of these. */
  static async dial(targets: readonly Address[], options: PulseOptions): Promise<PeerPulse> {
    return await PeerPulse.#begin(options, async (pulse) => {
      for (const [index, { host, port }] of targets.slice(0, PATHS_MAX).entries()) {
        const { address, family } = await lookup(host);
        const socket = await pulse.#open(family === 6 ? '::' : '0.0.0.0');
        socket.on('message', (datagram, from) => pulse.#hear(datagram, { socket, from }));
        pulse.#add({ index, socket, name: host, target: { host: address, port } });
      }
    });
  }

  static async #begin(options: PulseOptions, open: (pulse: PeerPulse) => Promise<void>): Promise<PeerPulse> {
    const pulse = new PeerPulse(options);
    try {
      await open(pulse);
      pulse.#beat();
      return pulse;
    } catch (cause) {
      pulse[Symbol.dispose]();
      throw cause;
    }
  }

  /** Of the sockets that it listens at, in order. */
  get ports(): readonly number[] {
    return this.#sockets.map((socket) => socket.address().port);
  }

  /** Whether the other side was heard, and is not lost. */
  get isThere(): boolean {
    return this.#state.verdict === 'there';
  }

  /** Undefined before anything was heard. */
  get lastHeardMs(): number | undefined {
    const heard = [...this.#paths.values()].flatMap(({ heard }) => heard?.atMs ?? []);
    return heard.length === 0 ? undefined : Math.max(...heard);
  }

  /** Of one that had to wait for nothing on its way; 0 before anything was heard. */
  get leastRoundTripMs(): number {
    return Number.isFinite(this.#leastRoundTripMs) ? this.#leastRoundTripMs : 0;
  }

  isLost(path: number): boolean {
    return this.#state.paths[path]?.isLost ?? false;
  }

  status(): readonly PathStatus[] {
    const nowMs = this.#options.clock.nowMs();
    return [...this.#paths.values()].map(({ index, name, rttMs, received, lost }) => {
      const known = this.#state.paths[index];
      return {
        address: name,
        state: known === undefined ? 'silent' : known.isLost ? 'lost' : 'heard',
        heardAgoMs: known === undefined ? null : Math.max(0, nowMs - known.lastMs),
        silenceMaxMs: known === undefined ? null : silenceMaxMs(known, this.#policy),
        jitterMs: known?.deviationMs ?? null,
        rttMs: rttMs.summary(),
        received,
        lost,
      };
    });
  }

  /** From now on the other side is not told any more that it is heard: nobody waits for it before he acts. */
  stopVouching(): void {
    this.#isVouching = false;
  }

  [Symbol.dispose](): void {
    this.#isOver = true;
    this.#cancelBeat();
    for (const socket of this.#sockets) socket.close();
    this.#sockets.length = 0;
  }

  async #open(host: string): Promise<Socket> {
    const { address, family } = await lookup(host);
    const socket = createSocket(family === 6 ? 'udp6' : 'udp4');
    // A path whose interface is gone is a path that is silent.
    socket.on('error', () => {});
    socket.bind({ address, port: 0 });
    await once(socket, 'listening');
    this.#sockets.push(socket);
    return socket;
  }

  #add(path: Pick<Path, 'index' | 'socket' | 'name' | 'target'>): Path {
    const added: Path = {
      ...{ ...path, run: 0, sequence: 0, heard: undefined, received: 0, lost: 0 },
      rttMs: new SampleWindow(SAMPLES),
    };
    this.#paths.set(path.index, added);
    return added;
  }

  #beat(): void {
    this.#cancelBeat = this.#options.clock.after(this.#policy.tickEveryMs, () => {
      if (this.#isOver) return;
      this.#beat();
      // First what lies there already: who was held up must not take that for silence.
      this.#step({ kind: 'tick', nowMs: this.#options.clock.nowMs() });
      this.#send();
    });
  }

  #send(): void {
    const { key, side, clock } = this.#options;
    this.#sequence += 1;
    for (const { index, socket, target, heard } of this.#paths.values()) {
      if (target === undefined || this.#isOver) continue;
      const vouched = this.#isVouching ? heard : undefined;
      const echo = vouched && { sentMs: vouched.sentMs, heldMs: clock.nowMs() - vouched.atMs };
      const sentMs = this.#stampMs();
      const pulse: Pulse = { path: index, run: this.#run, sequence: this.#sequence, sentMs, echo };
      socket.send(encodePulse(pulse, { key, side }), target.port, target.host, () => {});
    }
  }

  #hear(
    datagram: Uint8Array,
    { socket, from }: { socket: Socket; from: { address: string; port: number } },
  ): void {
    const { key, side, clock } = this.#options;
    const pulse = decodePulse(datagram, { key, from: side === 'primary' ? 'shadow' : 'primary' });
    if (pulse === undefined || pulse.path >= PATHS_MAX || this.#isOver) return;
    const isCalled = side === 'shadow';
    const path =
      this.#paths.get(pulse.path) ??
      (isCalled
        ? this.#add({ index: pulse.path, socket, name: from.address, target: undefined })
        : undefined);
    if (path === undefined) return;
    const isNew = pulse.run > path.run || (pulse.run === path.run && pulse.sequence > path.sequence);
    // A late one, or one that somebody repeats, says nothing of now, nor of where to answer to.
    if (!isNew) return;
    const nowMs = clock.nowMs();
    path.received += 1;
    if (pulse.run === path.run) path.lost += pulse.sequence - path.sequence - 1;
    path.run = pulse.run;
    path.sequence = pulse.sequence;
    path.heard = { sentMs: pulse.sentMs, atMs: nowMs };
    if (isCalled) path.target = { host: from.address, port: from.port };
    if (pulse.echo !== undefined) {
      const roundTripMs = Math.max(0, this.#stampMs() - pulse.echo.sentMs - pulse.echo.heldMs);
      path.rttMs.add(roundTripMs);
      this.#leastRoundTripMs = Math.min(this.#leastRoundTripMs, roundTripMs);
      this.#options.onEcho?.(pulse.echo.sentMs);
    }
    const { run, sequence } = pulse;
    this.#step({ kind: 'heartbeat', nowMs, path: String(pulse.path), run, sequence });
  }

  #step(event: HeartbeatEvent): void {
    const { next, effects } = stepHeartbeat(this.#state, event, this.#policy);
    this.#state = next;
    for (const effect of effects) if (!this.#isOver) this.#options.onEffect(effect);
  }
}
