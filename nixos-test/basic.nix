# Two machines: one serves its store through NixOS's own nix-serve module with narwire as the package, the other
# downloads, checks signatures and runs what it got. Run with: nix-build nixos-test/basic.nix
{
  pkgs ? import <nixpkgs> { },
}:

let
  narwire = pkgs.rustPlatform.buildRustPackage {
    pname = "narwire";
    version = "0.1.0";
    src = pkgs.lib.cleanSource ../.;
    cargoLock.lockFile = ../Cargo.lock;
    # They need Nix itself, and the network; this test is about the service.
    doCheck = false;
    postInstall = "ln -s narwire $out/bin/nix-serve";
    meta.mainProgram = "nix-serve";
  };

  # Of no value: the key of a test.
  keys = pkgs.runCommand "narwire-test-keys" { } ''
    mkdir $out
    ${narwire}/bin/narwire key generate test-1 --output $out/secret > $out/public
    chmod 444 $out/secret
  '';

  port = 5000;
in
pkgs.testers.runNixOSTest {
  name = "narwire-basic";

  nodes.server = {
    services.nix-serve = {
      enable = true;
      package = narwire;
      secretKeyFile = "${keys}/secret";
      openFirewall = true;
      inherit port;
    };
    # The module knows nothing of a NAR cache; $CACHE_DIRECTORY is enough.
    systemd.services.nix-serve.serviceConfig.CacheDirectory = "narwire";
    system.extraDependencies = [ pkgs.hello ];
  };

  nodes.client = {
    nix.settings.substituters = pkgs.lib.mkForce [ "http://server:${toString port}" ];
  };

  testScript = ''
    start_all()
    server.wait_for_unit("nix-serve.service")
    server.wait_for_open_port(${toString port})
    client.wait_until_succeeds("curl --fail http://server:${toString port}/nix-cache-info | grep 'Priority: 30'")

    # Nothing is trusted yet, so nothing is taken.
    client.fail("nix-store --realise ${pkgs.hello}")

    client.succeed(
        "nix-store --option trusted-public-keys \"$(cat ${keys}/public)\" --realise ${pkgs.hello}"
    )
    client.succeed("${pkgs.hello}/bin/hello")

    # What is asked for again is kept, in a directory that Nix itself can read.
    health = client.succeed("curl --fail http://server:${toString port}/health")
    assert "NAR cache: working" in health, health
    nar = "$(basename ${pkgs.hello} | cut -c-32)"
    for _ in range(2):
        client.succeed(f"curl --fail --output /dev/null http://server:${toString port}/nar/{nar}.nar")
    server.wait_until_succeeds(f"ls /var/cache/narwire/{nar}.narinfo")
    server.succeed(
        "nix --extra-experimental-features nix-command path-info --store file:///var/cache/narwire ${pkgs.hello}"
    )

    server.succeed("systemctl stop nix-serve.service")
    server.succeed("systemctl show -p Result nix-serve.service | grep success")
  '';
}
