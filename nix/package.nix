# narwire from the source beside this file: `pkgs.callPackage ./nix/package.nix { }`. The compiler has to be Rust 1.95 or later, so an
# older release of nixpkgs does not build it; the flake has one that does.
{
  lib,
  rustPlatform,
  gitMinimal,
  glibc,
  installShellFiles,
  # A program without libraries, for machines and containers that have no Nix. Not `pkgsStatic`: glommio does not compile with musl.
  static ? false,
}:

let
  manifest = lib.importTOML ../Cargo.toml;
in
rustPlatform.buildRustPackage {
  pname = "narwire";
  inherit (manifest.package) version;

  # Only what is built or installed, so that an edited document or test does not build it anew.
  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../Cargo.lock
      ../Cargo.toml
      ../deploy/grafana
      ../deploy/post-build-hook
      ../deploy/prometheus
      ../src
      ../systemd
    ];
  };
  cargoLock.lockFile = ../Cargo.lock;

  # SQLite, zstd and liblzma come with their crates and need a C compiler only, which is there. glommio brings liburing, and asks git for
  # it: there must be a git to fail.
  nativeBuildInputs = [
    gitMinimal
    installShellFiles
  ];
  buildInputs = lib.optional static glibc.static;
  # As in deploy/package, which says why.
  env = lib.optionalAttrs static {
    RUSTFLAGS = ''-C target-feature=+crt-static --cfg getrandom_backend="linux_getrandom"'';
  };

  # The tests need Nix itself, other Debian packages and the network: tests/run.
  doCheck = false;

  # The units are those of every other system, but for where the programs are. nix-serve is the name that NixOS's module of that name
  # starts.
  postInstall = ''
    ln -s narwire $out/bin/nix-serve

    install -D --mode=0644 --target-directory=$out/lib/systemd/system systemd/narwire.service systemd/narwire.socket
    substituteInPlace $out/lib/systemd/system/narwire.service \
      --replace-fail /usr/bin/narwire $out/bin/narwire
    install -D --mode=0644 --target-directory=$out/share/doc/narwire systemd/narwire.toml

    install -D --mode=0644 --target-directory=$out/share/doc/narwire/examples/prometheus deploy/prometheus/*.yml
    install -D --mode=0644 --target-directory=$out/share/doc/narwire/examples/grafana deploy/grafana/narwire.json

    install -D --mode=0755 --target-directory=$out/libexec/narwire deploy/post-build-hook
    substituteInPlace $out/libexec/narwire/post-build-hook \
      --replace-fail 'narwire push $NARWIRE_PUSH_FLAGS' "$out/bin/narwire push \$NARWIRE_PUSH_FLAGS"

    mkdir man
    $out/bin/narwire man man
    installManPage man/*
    for shell in bash fish zsh; do
      $out/bin/narwire completions $shell > narwire.$shell
    done
    installShellCompletion narwire.{bash,fish,zsh}
  '';

  meta = {
    inherit (manifest.package) description;
    license = [
      lib.licenses.mit
      lib.licenses.asl20
    ];
    mainProgram = "narwire";
    # io_uring, and a system call filter that knows one architecture.
    platforms = [ "x86_64-linux" ];
  };
}
