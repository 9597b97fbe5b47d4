#!/bin/sh
# Becomes a systemd that manages a machine of its own: started in new mount, pid, network, ipc, uts and cgroup
# namespaces by test/kit/systemd-machine.ts, which gives a folder for mounts and the repository.
#
# Nothing that it or its units write may reach the machine below: the root is an overlay whose upper layer is in memory,
# /tmp, /run and /dev are new, the repository and the kernel's variables are read-only, and the units that set up a real
# machine (sysctl, modules, devices, clean-up of /tmp) are not there. It looks whether that holds before it goes on.
set -eu
base=$1
repository=$2

mount --make-rprivate /
mount -t tmpfs -o size=2g tmpfs "$base"
mkdir "$base/upper" "$base/work" "$base/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" "$base/root"
root=$base/root

mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
[ ! -e "$root/proc/sysrq-trigger" ] || mount --bind /dev/null "$root/proc/sysrq-trigger"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=1777 tmpfs "$root/var/tmp"
# As a package that was put where packages lie.
mkdir -p "$root/opt/understudy"
mount --bind "$repository" "$root/opt/understudy"
mount -o remount,bind,ro "$root/opt/understudy"

mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/shm" "$root/dev/pts" "$root/dev/net"
mount -t tmpfs -o mode=1777,size=2g tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 net/tun:10:200; do
  number=${node#*:}
  mknod -m 666 "$root/dev/${node%%:*}" c "${number%:*}" "${number#*:}"
done

# Empty folders over those that would make it do what a real machine needs.
units=$root/usr/lib/systemd
for folder in system-generators system/sysinit.target.wants system/local-fs.target.wants \
  system/sockets.target.wants system/timers.target.wants system/multi-user.target.wants system/graphical.target.wants; do
  [ ! -d "$units/$folder" ] || mount -t tmpfs tmpfs "$units/$folder"
done
ln -s ../systemd-journald.service "$units/system/sysinit.target.wants/systemd-journald.service"
mount -t tmpfs tmpfs "$root/etc/systemd/system"
printf '[Unit]\nDescription=Nothing but what a test starts\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n' \
  >"$root/etc/systemd/system/us-test.target"
for unit in systemd-tmpfiles-setup.service systemd-tmpfiles-setup-dev.service systemd-tmpfiles-clean.service \
  systemd-sysctl.service systemd-modules-load.service systemd-udevd.service systemd-udev-trigger.service \
  systemd-random-seed.service systemd-remount-fs.service tmp.mount swap.target; do
  ln -s /dev/null "$root/etc/systemd/system/$unit"
done
printf '0123456789abcdef0123456789abcdef\n' >"$root/etc/machine-id"
ip link set lo up

mkdir "$root/below"
cd "$root"
pivot_root . below
umount -l /below

file_system() { stat -f -c %T "$1"; }
[ "$(file_system /)" = overlayfs ] && [ "$(file_system /tmp)" = tmpfs ] && [ "$(file_system /dev)" = tmpfs ] &&
  [ "$(file_system /run)" = tmpfs ] && ! touch /opt/understudy/us-probe 2>/dev/null &&
  ! sh -c 'echo 1 >/proc/sys/kernel/printk' 2>/dev/null ||
  { echo 'the machine below is not out of reach' >&2 && exit 1; }
shift 2
exec env -i container=us-test PATH=/usr/sbin:/usr/bin:/sbin:/bin setpriv \
  --bounding-set -sys_module,-sys_time,-sys_rawio,-sys_boot,-syslog,-wake_alarm "$@"
