# Restarts while clients ask without pause: by hand, and by switching to other systems. No request fails, and what is being downloaded
# comes to its end.
{
  name = "narwire-restart";

  nodes.server = {
    imports = [ ./machine.nix ];
    services.narwire = {
      enable = true;
      openFirewall = true;
    };

    system.switch.enable = true;
    boot.loader.grub.enable = false;
    specialisation = {
      # What a running server takes over …
      reload.configuration.services.narwire.priority = 17;
      # … and what it does not.
      restart.configuration.services.narwire.workers = 1;
    };
  };

  nodes.client = ./machine.nix;

  testScript = ''
    start_all()
    server.wait_for_unit("narwire.service")
    client.wait_until_succeeds("curl --fail http://server:5000/nix-cache-info")
    system = server.succeed("readlink --canonicalize /run/current-system").strip()

    path = server.succeed("head --bytes=64M /dev/urandom >/tmp/noise && nix-store --add /tmp/noise").strip()
    hash = path.removeprefix("/nix/store/")[:32]
    url = f"http://server:5000/nar/{hash}.nar"

    # Each asks, over and over, ten times on a connection, and notes what did not succeed.
    curl = client.succeed("command -v curl").strip()
    requests = f"{curl} --fail --silent --show-error --output /dev/null 'http://server:5000/{hash}.narinfo?[1-10]'"
    client.succeed(
        "cat >/tmp/load <<'END'\n"
        f"while ! [ -e /tmp/enough ]; do {requests} 2>>/tmp/failed || echo failed >>/tmp/failed; echo asked >>/tmp/asked; done\n"
        "END"
    )
    loads = [f"load-{number}.service" for number in range(8)]
    for load in loads:
        client.succeed(f"systemd-run --unit={load} --setenv=PATH=$PATH -- /bin/sh /tmp/load")
    client.wait_until_succeeds("[ -s /tmp/asked ]")

    def process():
        return server.succeed("systemctl show --property MainPID narwire.service")

    # A slow download is under way meanwhile: sixteen seconds, of which the server gives sixty.
    client.succeed(
        f"systemd-run --unit=slow --property=RemainAfterExit=yes -- {curl} --fail --limit-rate 4M --output /tmp/noise {url}"
    )
    client.wait_until_succeeds("[ -s /tmp/noise ]")
    before = process()
    server.succeed("systemctl restart narwire.service")
    assert process() != before
    client.wait_until_succeeds("systemctl show --property SubState slow.service | grep exited")
    client.succeed("systemctl show --property Result slow.service | grep success")
    assert client.succeed("stat --format=%s /tmp/noise") == server.succeed(f"nix-store --query --size {path}")

    for _ in range(5):
        server.succeed("systemctl restart narwire.service")

    def switch(to):
        server.succeed(f"{to}/bin/switch-to-configuration test")

    before = process()
    switch(f"{system}/specialisation/reload")
    client.wait_until_succeeds("curl --fail http://server:5000/nix-cache-info | grep 'Priority: 17'")
    assert process() == before, "a reload was enough"
    switch(f"{system}/specialisation/restart")
    assert process() != before, "only a restart changes the number of workers"
    client.succeed("curl --fail http://server:5000/nix-cache-info | grep 'Priority: 30'")
    switch(system)

    client.succeed("touch /tmp/enough")
    for load in loads:
        client.wait_until_fails(f"systemctl is-active {load}")
    failed = client.succeed("touch /tmp/failed && cat /tmp/failed")
    assert failed == "", failed
  '';
}
