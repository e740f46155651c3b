#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narwire::codec::export::fuzz_export(data));
