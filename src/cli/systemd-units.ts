import type { HostConfig } from '../config/host-config-schema.ts';
import { HOST_UNIT, KEEPER_START_MAX_SECONDS, KEEPER_UNIT, SITE_UNIT } from '../control/keeper-unit.ts';

/** Absolute paths of this installation. */
interface UnitPlaces {
  /** The Node that the package brings along. */
  readonly node: string;
  /** Where the package lies. */
  readonly packageDirectory: string;
  readonly config: HostConfig;
}

const SLICE_UNIT = 'understudy.slice';
const MANUAL = 'Documentation=man:understudy(1)';

/** The directories that systemd itself makes, with the setting that names each below its root. */
const MANAGED = {
  state: { root: '/var/lib/', directive: 'StateDirectory' },
  cache: { root: '/var/cache/', directive: 'CacheDirectory' },
  run: { root: '/run/', directive: 'RuntimeDirectory' },
} as const;

/** Text of each unit by its name. The only place where they stand. */
export function systemdUnits(places: UnitPlaces): ReadonlyMap<string, string> {
  return new Map([
    [HOST_UNIT, hostUnit(places)],
    [KEEPER_UNIT, keeperUnit(places)],
    [SITE_UNIT, siteUnit(places)],
    [SLICE_UNIT, SLICE],
  ]);
}

const SLICE = `[Unit]
Description=Understudy: the host and the VMs that it keeps
${MANUAL}

[Slice]
CPUAccounting=yes
MemoryAccounting=yes
`;

function hostUnit(places: UnitPlaces): string {
  const directories = directoriesOf(places.config);
  return `[Unit]
Description=Understudy host: declared VMs, their shadows and the API
${MANUAL}
After=network.target local-fs.target
# VMs whose keepers are killed wait for it: it is started again however often it fails.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart=${command(places, ['--disable-warning=ExperimentalWarning', 'src/host/main.ts'])}
ExecReload=/bin/kill -HUP $MAINPID
${environment({ ...sharedEnvironment(directories), UNDERSTUDY_STATE_DIR: directories.state })}
Slice=${SLICE_UNIT}
SyslogIdentifier=understudy-host

# A wrong configuration (78) does not mend itself.
Restart=on-failure
RestartSec=1
RestartPreventExitStatus=78
WatchdogSec=30
TimeoutStopSec=60
OOMScoreAdjust=-250

# Keepers are units of their own. Those that were started directly (keepers.start) live in this unit's group, and
# outlive the daemon all the same.
KillMode=process

${directoryDirectives(directories)}
UMask=0077
NoNewPrivileges=yes
ProtectSystem=strict
# The package is read from where it lies.
ProtectHome=${isAtHome(places.packageDirectory) ? 'read-only' : 'yes'}
PrivateTmp=${/^\/(?:var\/)?tmp\//.test(places.packageDirectory) ? 'no' : 'yes'}
DevicePolicy=closed
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
# The API: unix socket, TCP.
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
# For what a killed keeper left, whose QEMU may have run as another user (qemu.user): CAP_KILL ends it, CAP_SYS_PTRACE
# reads which memory it maps, CAP_DAC_OVERRIDE and CAP_FOWNER remove its files. CAP_CHOWN gives the socket to its group.
CapabilityBoundingSet=CAP_KILL CAP_SYS_PTRACE CAP_DAC_OVERRIDE CAP_FOWNER CAP_CHOWN

[Install]
WantedBy=multi-user.target
`;
}

/** For a keeper, and for what starts keepers, which pass it on. */
const CONFINEMENT_OF_KEEPERS = `# The keeper limits its standby's CPU time.
Delegate=yes
TasksMax=infinity
# When memory runs out, rather others end. When it does hit a QEMU, its shadow takes over: systemd is to let it.
OOMScoreAdjust=-500
OOMPolicy=continue

UMask=0077
NoNewPrivileges=yes
# Not strict, no ProtectHome, no PrivateTmp: kernels and disks of a VM lie where its specification says.
ProtectSystem=full
DevicePolicy=closed
DeviceAllow=/dev/kvm rw
DeviceAllow=/dev/net/tun rw
DeviceAllow=/dev/userfaultfd rw
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
# Control socket and QEMU, forwarded ports, network devices. No RestrictNamespaces: passt makes some, and a TAP may live
# in one.
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
# What services use, and passt's sandbox.
SystemCallFilter=@system-service @mount seccomp
SystemCallErrorNumber=EPERM
# CAP_NET_ADMIN: TAP devices and their addresses. CAP_SYS_ADMIN: entering a network namespace, passt's sandbox.
# CAP_SYS_PTRACE: pagemap of a QEMU that runs as another user, userfaultfd. CAP_SETUID, CAP_SETGID, CAP_CHOWN,
# CAP_FOWNER, CAP_DAC_OVERRIDE, CAP_KILL: that user (qemu.user), its files and its end; passt gives up root by itself.
# CAP_NET_BIND_SERVICE: forwarded ports below 1024.
CapabilityBoundingSet=CAP_NET_ADMIN CAP_SYS_ADMIN CAP_SYS_PTRACE CAP_SETUID CAP_SETGID CAP_CHOWN CAP_FOWNER CAP_DAC_OVERRIDE CAP_KILL CAP_NET_BIND_SERVICE
`;

function keeperUnit(places: UnitPlaces): string {
  return `[Unit]
Description=Understudy keeper of the VM %i
${MANUAL}
After=network.target local-fs.target
# The system is shut down in the reverse order: the host ends first, and does not take the end of its VMs for what their
# owners want. Nothing else ties a VM to the host's unit, which may be stopped, restarted and upgraded.
Before=${HOST_UNIT}
# The host decides when to try again.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart=${command(places, ['src/keeper/main.ts'])} --order %i
${environment(sharedEnvironment(directoriesOf(places.config)))}
Slice=${SLICE_UNIT}
SyslogIdentifier=understudy-%i

# SIGTERM powers the guest off. When the keeper is killed its QEMU stands still, and the next keeper of this unit takes it
# back: what is left of the unit is not for systemd to end.
KillMode=process
TimeoutStartSec=${KEEPER_START_MAX_SECONDS}
TimeoutStopSec=60

${CONFINEMENT_OF_KEEPERS}`;
}

function siteUnit(places: UnitPlaces): string {
  const directories = directoriesOf(places.config);
  return `[Unit]
Description=Understudy site: shadows of VMs that other hosts have
${MANUAL}
# Its address has to be there before it can listen on it.
After=network-online.target local-fs.target
Wants=network-online.target
# Who has one host alone needs none.
ConditionPathExists=/etc/understudy/site.yaml
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart=${command(places, ['src/keeper/site-main.ts', '--text'])}
${environment({ ...sharedEnvironment(directories), UNDERSTUDY_STATE_DIR: directories.state })}
Slice=${SLICE_UNIT}
SyslogIdentifier=understudy-site

# An address may be late, and files may be mended: it tries again, not too often.
Restart=on-failure
RestartSec=5
TimeoutStopSec=60

# Keepers of shadows live in this unit's group, outlive the process, and may become those of VMs.
KillMode=process

${directoryDirectives(directories)}

${CONFINEMENT_OF_KEEPERS}
[Install]
WantedBy=multi-user.target
`;
}

interface Directories {
  readonly state: string;
  readonly run: string;
  readonly memory: string;
  readonly cache: string;
}

function directoriesOf({ state, runDirectory, memoryDirectory, cacheDirectory }: HostConfig): Directories {
  return {
    state: state ?? '/var/lib/understudy',
    run: runDirectory ?? '/run/understudy',
    memory: memoryDirectory ?? '/dev/shm',
    cache: cacheDirectory ?? '/var/cache/understudy',
  };
}

/** Host and keepers must look in the same places, also while the file says something newer. */
function sharedEnvironment({ run, memory, cache }: Directories): Record<string, string> {
  return { UNDERSTUDY_RUN_DIR: run, UNDERSTUDY_MEMORY_DIR: memory, UNDERSTUDY_CACHE: cache };
}

/** systemd makes those that lie where it keeps such directories; the others have to be there. */
function directoryDirectives(directories: Directories): string {
  const lines: string[] = [];
  for (const kind of ['state', 'cache', 'run'] as const) {
    const { root, directive } = MANAGED[kind];
    const path = directories[kind];
    const below = path.startsWith(root) ? path.slice(root.length) : '';
    if (below === '') {
      lines.push(`ReadWritePaths=${quoted(path)}`);
      continue;
    }
    lines.push(`${directive}=${quoted(below)}`);
    // Keepers live in there while the host is away; its group passes through to the socket.
    if (kind === 'run') lines.push('RuntimeDirectoryMode=0711', 'RuntimeDirectoryPreserve=yes');
    else lines.push(`${directive}Mode=0700`);
  }
  if (!directories.memory.startsWith('/dev/')) lines.push(`ReadWritePaths=${quoted(directories.memory)}`);
  return lines.join('\n');
}

function command({ node, packageDirectory }: UnitPlaces, words: readonly string[]): string {
  const paths = words.map((word) => (word.startsWith('-') ? word : `${packageDirectory}/${word}`));
  // A dollar sign would begin a variable: systemd.service(5).
  return [node, ...paths].map((word) => quoted(word).replaceAll('$', '$$$$')).join(' ');
}

function environment(variables: Readonly<Record<string, string>>): string {
  return Object.entries(variables)
    .map(([name, value]) => `Environment=${quoted(`${name}=${value}`)}`)
    .join('\n');
}

/** As systemd.syntax(7) and systemd.unit(5) want it: percent signs are specifiers. */
function quoted(word: string): string {
  const plain = word.replaceAll('%', '%%');
  return /^[\w@%+=:,./-]+$/.test(plain) ? plain : `"${plain.replaceAll(/["\\]/g, '\\$&')}"`;
}

function isAtHome(path: string): boolean {
  return /^\/(?:home|root|run\/user)\//.test(`${path}/`);
}
