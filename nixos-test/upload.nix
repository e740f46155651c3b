# Uploads with tokens: taken, kept, served, and refused when the token has been revoked and the service was told so.
{
  name = "narwire-upload";

  nodes.server = {
    imports = [
      ./machine.nix
      ./secret.nix
    ];
    services.narwire = {
      enable = true;
      openFirewall = true;
      tokens = "/var/lib/tokens/tokens";
      upload.enable = true;
    };
  };

  nodes.client = ./machine.nix;
  nodes.other = ./machine.nix;

  testScript = ''
    start_all()
    server.wait_for_unit("narwire.service")
    client.wait_until_succeeds("curl --fail http://server:5000/nix-cache-info")

    def upload(contents):
        path = client.succeed(f"echo {contents} >/tmp/{contents} && nix-store --add /tmp/{contents}").strip()
        return path, f"nix copy --to http://server:5000 {path}"

    path, command = upload("first")
    client.fail(command)
    token = server.succeed("cat /var/lib/secret/token").strip()
    client.succeed(f"echo machine server login ci password {token} >/etc/nix/netrc")
    client.succeed(command)
    hash = path.removeprefix("/nix/store/")[:32]
    server.succeed(f"ls /var/lib/narwire/{hash}.narinfo")
    other.succeed(f"nix copy --no-check-sigs --from http://server:5000 {path}")
    assert other.succeed(f"cat {path}") == "first\n"

    # The live store is served beside it.
    path = server.succeed("nix-store --add /etc/machine-id").strip()
    other.succeed(f"nix copy --no-check-sigs --from http://server:5000 {path}")

    process = "systemctl show --property MainPID narwire.service"
    before = server.succeed(process)
    server.succeed("narwire token revoke --file /var/lib/tokens/tokens --name ci")
    server.succeed("systemctl reload narwire.service")
    path, command = upload("second")
    client.wait_until_succeeds(
        "curl --silent --output /dev/null --write-out '%{http_code}' --netrc-file /etc/nix/netrc "
        "--upload-file /tmp/second http://server:5000/nar/second.nar | grep 401"
    )
    client.fail(command)
    assert server.succeed(process) == before
  '';
}
