/** Every field of a VM specification with its default, explained. Shown by `understudy run --help`. */
export const VM_SPEC_EXAMPLE = `\
name: redis-demo               # 1 to 40 of a-z 0-9 -
vcpus: 1                       # 1 to 64
memory: 256MiB                 # whole MiB, 32MiB to 1TiB
accel: auto                    # auto: KVM where it really runs a guest, else TCG | kvm | tcg
machine: q35                   # the only one for now
boot:                          # a kernel, or disk: {path: debian.qcow2, format: qcow2}
  kernel: vmlinuz              # relative paths begin at the folder of this file
  initrd: initrd.cpio.gz
  cmdline: console=ttyS0
disks:                         # none unless listed; boot.disk has the same fields
  - path: data.qcow2
    format: qcow2              # raw | qcow2; never guessed
    readOnly: false            # a shadow can follow a disk that is only read
    size: 10GiB                # whole MiB; an image that is there must have this size
    create: true               # default false: make the image when it is missing
    # backing: {path: base.qcow2, format: qcow2}   # what a qcow2 image stands on, one level
    cache: writeback           # writeback | none: past the host's page cache; only of a disk that is not in epochs
    serial: data-1             # for the guest to find it by; up to 20 of A-Z a-z 0-9 _ . -
    unprotectedDisk: true      # default false: it commits with the epochs; true: it may be newer than memory: docs/disks.md
nics:
  - mac: 52:54:00:12:34:56     # derived from name and position when left out
    uplink:
      kind: tap                # tap | passt | none
      device: us-redis         # made at the start, gone at the end
      address: 10.77.0.1/24    # of the host's end; or bridge: br0
      # netns: name            # network namespace the device lives in
  - uplink:
      kind: passt              # where TAP is not allowed
      forward:
        - {hostPort: 16379, guestPort: 6379}
      # hostLoopback: false    # default true: the guest reaches the host's loopback
console: true                  # serial console
agent: true                    # channel org.qemu.guest_agent.0, needed to set the guest's clock
generationId: true             # tell the guest when it was taken back to a snapshot: VMGenID; default: no such device
qemu:
  binary: qemu-system-x86_64
  # user: libvirt-qemu         # run QEMU as this user; with KVM its primary group must be kvm
  extraArgs: []                # only what a shadow can follow, e.g. [-device, virtio-rng-pci]
shadow:
  enabled: true
  # restartElsewhere: false    # another of these hosts may begin the VM anew when who acted alone is gone
  # hosts: [a, b]              # of site.yaml, or auto for all of them: the shadow is on another one; left out: on this host
  # antiAffinity: [web]        # VMs, or words that VMs have in common, whose hosts the shadow avoids
  maxIntervalMs: 100           # an epoch ends at least this often
  pauseShare: 0.3              # bound on the share of time the guest stands still, 0.01 to 0.9
  pauseBurstMs: 20             # pause that a quiet VM may spend at once
  dirtyPagesMax: 8192          # an epoch ends when more pages are dirty
  epochsInFlightMax: 4         # epochs cut but not yet committed
  commit: memory               # memory | durable: output also waits until what was written to disks survives a power loss
  hangTimeoutMs: 2000          # a QEMU that could answer and is silent for so long is taken for dead: its shadow goes on
  restartTimeoutMs: 60000      # the same where no shadow is in sync: its memory is lost, and it boots
  dirtyLog: auto               # auto | pagemap-scan | soft-dirty | compare
  standbyCpuShare: 0.01        # of one CPU, until the standby is promoted
clock:
  syncIntervalMs: 1000         # the guest's wall clock is compared this often
  errorMaxMs: 40               # and set when it is off by more
snapshots:                     # taken by themselves, beside what \`understudy snapshot create\` takes; default: none
  every: 1h                    # from the shadow, while the VM runs: 1m to 30d; or onShutdown alone
  keep: 24                     # so many of the newest of these stay, 1 to 1000
  daily: 7                     # default 0: and the newest of each of so many days
  onShutdown: true             # default false: also before the VM is asked to power off
  # directory: /srv/snapshots  # default: where \`understudy snapshot\` looks; else give it --store
  # keyFile: snap.key          # encrypts them
telemetry:
  interval: 1s                 # how often the VM is measured, 100ms to 60s; \`understudy telemetry\` changes it while it runs
forecast:
  horizon: 1h                  # how far ahead something is kept ready, 5m to 24h
allocation:                    # by a host daemon: \`understudy host\`
  mode: recommend              # off | recommend: only said, see \`understudy explain\` | auto: carried out
  preAllocationThreshold: 0.1  # what has to be missing, as a share of what the VM has, before it is asked for
  scalingPolicy: balanced      # eager | balanced | thrifty, or {quantile: 0.95, margin: 0.2, lowerAfter: 10m}
  cpu: {min: 0.1, max: 1}      # cores; default: a tenth of the vcpus, and all of them
  # memory: {min: 128MiB, max: 256MiB}             # default: no bounds, nothing is decided
  # disk: {min: 1MiB, max: 100MiB}                 # per second, of all disks; default: no bounds, nothing is decided
  # net: {min: 1MiB, max: 100MiB}                  # the same, of all network cards
termination: remove            # what becomes of its state when it is stopped: remove | suspend | snapshot
shutdownTimeoutMs: 10000       # a guest that was asked to power off is ended after so long, 0 to 100000
`;
