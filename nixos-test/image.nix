# A machine of its own that serves its store on port 5000, as a disk for qemu (qcow2):
#
#   nix build .#image && cp --no-preserve=mode result/*.qcow2 narwire.qcow2
#   qemu-system-x86_64 -enable-kvm -m 2G -nographic -nic user,hostfwd=tcp::5000-:5000 -drive file=narwire.qcow2,if=virtio
#
# Other forms of it, for clouds and other hypervisors, are `config.system.build.images` of the same. It is a point to start from: nobody
# can log in before a line here says who.
{ modulesPath, pkgs, ... }:
{
  imports = [ "${modulesPath}/profiles/qemu-guest.nix" ];

  services.narwire = {
    enable = true;
    openFirewall = true;
  };

  networking.hostName = "narwire";
  # `-nographic` shows the first serial line.
  boot.kernelParams = [ "console=ttyS0" ];
  # Something to serve beyond the system itself.
  system.extraDependencies = [ pkgs.hello ];
  system.stateVersion = "26.05";
}
