#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narwire::push::netrc::fuzz_netrc(data));
